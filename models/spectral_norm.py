"""Spectral norm of a network's some hundred weights at once (docs/method.md 1).

On a GPU, what a step costs here is the number of operations: all vectors lie in one buffer, all
matrices in another, and products go by matrix shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.spectral_weight import EPS, SpectralWeight, WeightBank, autocast_dtype


class _Group:
    """Weights of one matrix shape, side by side in the normaliser's buffers.

    bank: whose they are, all of them; None: each is used alone.
    """

    def __init__(self, weights: list[SpectralWeight], bank: WeightBank | None) -> None:
        self.weights, self.bank = weights, bank
        self.shape = len(weights), *weights[0].as_matrix().shape

    def lay_out(self, flat: Tensor) -> Tensor:
        """A part of a buffer as (n, rows, columns)."""
        return flat.view(self.shape)

    def one_by_one(self, stacked: Tensor) -> list[Tensor]:
        return [w.from_matrix(x) for w, x in zip(self.weights, stacked.unbind(), strict=True)]


class _Normaliser:
    """Normalises the weights of one network, in buffers that are kept from step to step.

    vectors: every v, then every u; owner: which of those vectors a number of it belongs to.
    """

    def __init__(self, weights: list[SpectralWeight], dtype: torch.dtype | None) -> None:
        banks = {id(w.bank): w.bank for w in weights if w.bank is not None}.values()
        alone: dict[torch.Size, list[SpectralWeight]] = {}
        for w in weights:
            if w.bank is None:
                alone.setdefault(w.as_matrix().shape, []).append(w)
        self.groups = [_Group(bank.weights, bank) for bank in banks]  # in the bank's own order
        self.groups += [_Group(ws, None) for ws in alone.values()]
        self.weights = [w for g in self.groups for w in g.weights]
        first = weights[0].weight_orig
        device = first.device
        rows = [g.shape[1] for g in self.groups for _ in g.weights]
        columns = [g.shape[2] for g in self.groups for _ in g.weights]
        sizes = [r * c for r, c in zip(rows, columns, strict=True)]
        lengths = [*columns, *rows]
        # Normal tensors, also where the first to use a network is in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self.flat = torch.empty(sum(sizes), device=device, dtype=first.dtype)
            self.normalised = torch.empty_like(self.flat, dtype=dtype)
            self.vectors = self.flat.new_empty(sum(lengths))
            self.sigma = self.flat.new_empty(len(sizes))
            self.lengths = torch.tensor(lengths).to(device)
            self.owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
            self.owner = self.owner.to(device)
            self.parts = [math.prod(g.shape) for g in self.groups]
            self.matrices = self.split(self.flat)
            self.results = self.split(self.normalised)
            self.v, self.u = self.split_vectors(self.vectors)
            self.sigmas = self.split_scalars(self.sigma)
            self.targets = [
                x for g, m in zip(self.groups, self.matrices, strict=True) for x in g.one_by_one(m)
            ]
            self.single = list(self.vectors.split(lengths))
        self.seen: list[tuple[Tensor, int]] | None = None

    def fits(self) -> bool:
        """Whether the weights are where they were."""
        return all(w.weight_orig.device == self.flat.device for w in self.weights)

    def split(self, flat: Tensor) -> list[Tensor]:
        """A buffer of matrices, by group: (n, rows, columns) each."""
        parts = flat.split(self.parts)
        return [g.lay_out(part) for g, part in zip(self.groups, parts, strict=True)]

    def split_vectors(self, vectors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """A buffer of vectors, by group: every v (n, columns, 1), every u (n, rows, 1)."""
        sizes = [g.shape[0] * g.shape[i] for i in (2, 1) for g in self.groups]
        parts = vectors.split(sizes)
        parts = [p.view(g.shape[0], -1, 1) for g, p in zip(2 * self.groups, parts, strict=True)]
        return parts[: len(self.groups)], parts[len(self.groups) :]

    def split_scalars(self, scalars: Tensor) -> list[Tensor]:
        """One a weight, by group: (n, 1, 1) each."""
        parts = scalars.split([g.shape[0] for g in self.groups])
        return [part.view(-1, 1, 1) for part in parts]

    def unchanged(self) -> bool:
        """Whether every weight and vector is as at the last call; never said of what is trained."""
        tensors = [x for w in self.weights for x in (w.weight_orig, w.weight_u, w.weight_v)]
        # The changes of a tensor that was made in inference mode are not counted.
        if any(x.requires_grad or x.is_inference() for x in tensors):
            return False
        before, self.seen = self.seen, [(x, x._version) for x in tensors]
        return before is not None and all(
            x is y and version == seen
            for (x, version), (y, seen) in zip(self.seen, before, strict=True)
        )

    @torch.no_grad()
    def update(self, power_iterations: int) -> None:
        """Brings every buffer up to date, and the weights' own u and v where they move."""
        if power_iterations:
            self.seen = None
        elif self.unchanged():
            return
        _copy(self.targets, [w.weight_orig for w in self.weights])
        us, vs = [w.weight_u for w in self.weights], [w.weight_v for w in self.weights]
        torch._foreach_copy_(self.single, [*vs, *us])
        for _ in range(power_iterations):
            self.iterate()
        if power_iterations:
            torch._foreach_copy_([*vs, *us], self.single)
        else:
            products = torch.empty_like(self.vectors)
            _, wv = self.split_vectors(products)
            for m, v, out in zip(self.matrices, self.v, wv, strict=True):
                torch.bmm(m, v, out=out)
            count = len(self.weights)
            rows = self.lengths[count:]
            first = len(self.vectors) - sum(g.shape[0] * g.shape[1] for g in self.groups)
            self.sigma.copy_(_segment_sums(products[first:] * self.vectors[first:], rows))
        for m, sigma, out in zip(self.matrices, self.sigmas, self.results, strict=True):
            torch.div(m, sigma, out=out)  # Eq. 1.1

    def iterate(self) -> None:
        """Eq. 1.1 for all weights: u and v move on, sigma follows."""
        for m, v, u in zip(self.matrices, self.v, self.u, strict=True):
            torch.bmm(m.mT, u, out=v)
            torch.bmm(m, v, out=u)
        # Both products come before the lengths are known: W (v / |v|) = (W v) / |v|.
        length = _segment_sums(self.vectors.square(), self.lengths).sqrt_().clamp_min_(EPS)
        self.vectors.div_(length[self.owner])
        of_v, of_u = length.chunk(2)
        torch.div(of_u, of_v, out=self.sigma)  # u^T W v, as u is W v over its length

    def outputs(self) -> list[Tensor]:
        """A bank's weights in one, (n, rows, columns); the others one by one, as matrices."""
        lists = (
            [x[:]] if g.bank is not None else x.unbind()
            for g, x in zip(self.groups, self.results, strict=True)
        )
        return [x for one in lists for x in one]

    def share(self) -> None:
        """Hand the normalised weights to the layers."""
        parameters = [w.weight_orig for w in self.weights]
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            outputs = iter(_Normalised.apply(self, *parameters))
        else:
            outputs = iter(self.outputs())
        for g in self.groups:
            if g.bank is not None:
                g.bank.shared = next(outputs)
                singles = g.bank.shared.unbind()
            else:
                singles = itertools.islice(outputs, len(g.weights))
            for w, x in zip(g.weights, singles, strict=True):
                w.shared = w.from_matrix(x)

    def release(self) -> None:
        for g in self.groups:
            if g.bank is not None:
                g.bank.shared = None
            for w in g.weights:
                w.shared = None

    def gradients(
        self, grads: tuple[Tensor | None, ...], flat: Tensor, vectors: Tensor, sigma: Tensor
    ) -> list[Tensor | None]:
        """Of the weights, from those of `outputs`: (G - <G, W> / sigma u v^T) / sigma."""
        whole = all(g is not None for g in grads)
        total = torch.empty_like(flat) if whole else torch.zeros_like(flat)
        pairs, wanted, given = [], [], iter(grads)
        for group, stacked in zip(self.groups, self.split(total), strict=True):
            targets = [stacked] if group.bank is not None else stacked.unbind()
            own = [(x, next(given)) for x in targets]
            pairs += [(x, g) for x, g in own if g is not None]
            wanted.append([g is not None for _, g in own])
        if pairs:
            _copy(*zip(*pairs, strict=True))

        dots = torch.empty_like(sigma)
        parts = self.split(total * flat), dots.split([len(g.weights) for g in self.groups])
        for product, out in zip(*parts, strict=True):
            torch.sum(product.flatten(1), dim=1, out=out)
        factor = torch.cat([torch.ones_like(sigma), dots / -sigma])  # of every v, of every u
        vs, us = self.split_vectors(vectors * factor[self.owner])
        result = []
        for group, grad, u, v, scale, asked in zip(
            self.groups, self.split(total), us, vs, self.split_scalars(sigma), wanted, strict=True
        ):
            if any(asked):
                grad.baddbmm_(u, v.mT).div_(scale)
            asked = asked * (len(group.weights) // len(asked))
            result += [x if w else None for x, w in zip(group.one_by_one(grad), asked, strict=True)]
        return result


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """In one operation those that lie alike in memory; a transposed convolution's do not."""
    alike = [(x, y) for x, y in zip(targets, sources, strict=True) if x.stride() == y.stride()]
    if alike:
        torch._foreach_copy_(*zip(*alike, strict=True))
    for x, y in zip(targets, sources, strict=True):
        if x.stride() != y.stride():
            x.copy_(y)


def _segment_sums(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True)  # unsafe: checks no values


class _Normalised(torch.autograd.Function):
    """The outputs of a normaliser, as functions of its weights; u and v are constants."""

    @staticmethod
    def forward(ctx, normaliser: _Normaliser, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.normaliser = normaliser
        ctx.set_materialize_grads(False)
        # They are the next step's buffers too: used after that, autograd says so.
        ctx.save_for_backward(normaliser.flat, normaliser.vectors, normaliser.sigma)
        return tuple(normaliser.outputs())

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.normaliser.gradients(grads, *ctx.saved_tensors)


_NORMALISERS: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()


def _normaliser(network: nn.Module, dtype: torch.dtype | None) -> _Normaliser | None:
    """The network's, whose layers stay; None for a network without spectral weights.

    One for each dtype, and kept: a captured step goes on using its buffers.
    """
    known = _NORMALISERS.setdefault(network, {})
    if not (dtype in known and (known[dtype] is None or known[dtype].fits())):
        weights = [m for m in network.modules() if isinstance(m, SpectralWeight)]
        known[dtype] = _Normaliser(weights, dtype) if weights else None
    return known[dtype]


@contextmanager
def shared_spectral_norm(*networks: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Normalise every weight once; all forwards inside the block share the result.

    In training mode that is one power iteration a step however many forwards the step has. In
    evaluation mode, what has not changed since the last block is not computed again. Leave the
    block before the optimisers' next use of the weights: they are computed on entry. Gradients are
    taken before the next block of the same network.

    dtype: that they are converted to, once instead of at every use; None: autocast's, if it is on.
    """
    entered: list[_Normaliser] = []
    try:
        for network in networks:
            device = next(network.parameters()).device.type
            normaliser = _normaliser(network, dtype or autocast_dtype(device))
            if normaliser is None:
                continue
            entered.append(normaliser)
            with torch.autocast(device, enabled=False):
                normaliser.update(int(normaliser.weights[0].training))
            normaliser.share()
        yield
    finally:
        for normaliser in entered:
            normaliser.release()


@torch.no_grad()
def converge_spectral_norm(network: nn.Module, power_iterations: int = 50) -> None:
    """Bring every u and v to the leading singular vectors, for weights that came from elsewhere."""
    normaliser = _normaliser(network, None)
    if normaliser is not None:
        normaliser.update(power_iterations)
