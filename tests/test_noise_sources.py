"""What the generator's noise maps are drawn from."""

import torch

from models.generator import per_image_noise


def test_noise_maps_belong_to_their_image(device: torch.device):
    both, alone, on_cpu = per_image_noise([7, 8]), per_image_noise([8]), per_image_noise([7, 8])
    plain = torch.Generator().manual_seed(7)
    for _ in range(2):  # one SFT layer's map after the other
        maps = both((2, 1, 5, 3), device)
        assert torch.equal(maps[0].cpu(), torch.randn(1, 5, 3, generator=plain))
        assert torch.equal(maps[1:], alone((1, 1, 5, 3), device))
        assert torch.equal(maps.cpu(), on_cpu((2, 1, 5, 3), torch.device("cpu")))
    assert maps.device.type == device.type
