"""Adam as it was published, to compare the fused one with."""

import torch
from torch import nn

LR = 1e-2


class PlainAdam(torch.optim.Optimizer):
    """Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1, element by element, in float64."""

    def __init__(self, other: torch.optim.Adam) -> None:
        (group,) = other.param_groups
        super().__init__(group["params"], {k: group[k] for k in ("lr", "betas", "weight_decay")})

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        b1, b2 = group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            assert p.grad.stride() == p.stride()
            g = p.grad.double() + group["weight_decay"] * p.double()
            s = self.state[p]
            s["t"] = s.get("t", 0) + 1
            s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
            s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
            m, v = s["m"] / (1 - b1 ** s["t"]), s["v"] / (1 - b2 ** s["t"])
            p.sub_((group["lr"] * m / (v.sqrt() + 1e-8)).to(p.dtype))


def plain(s: nn.Module) -> None:
    s.optimisers = {name: PlainAdam(o) for name, o in s.optimisers.items()}


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    """A step of Adam is about LR an element. An element whose gradient is nothing but rounding may
    go either way, and moves others a little: 1 % of a network's are let off."""
    theirs = dict(b.named_parameters())
    networks = {name.partition(".")[0] for name in theirs}
    for network in networks:
        apart = torch.cat(
            [
                (p - theirs[name]).abs().flatten()
                for name, p in a.named_parameters()
                if name.startswith(network)
            ]
        )
        assert (apart > 0.05 * LR).float().mean() < 0.01, network
    for module in ("generator.conv_up1", "generator.conv_up2"):  # the ones that were scrambled
        if "generator" in networks:
            weight = f"{module}.tconv2d.weight_orig"
            apart = (a.get_parameter(weight) - theirs[weight]).abs()
            assert (apart > 0.05 * LR).float().mean() < 0.01, weight
