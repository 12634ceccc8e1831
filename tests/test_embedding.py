"""How the embeddings of a reference's patches become one."""

import torch
import torch.nn.functional as F

from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.embedding import (
    INTENSITY_BINS,
    LEVELS,
    STATISTICS,
    Pooling,
    StatisticsHead,
    share_of_intensities,
)
from models.losses import noise_statistics


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(3)), dim=-1)


def exact_head() -> StatisticsHead:
    """As many numbers as statistics, told so loudly that the ridge is nothing beside them."""
    torch.manual_seed(0)
    head = StatisticsHead(STATISTICS)
    with torch.no_grad():
        head.weight.copy_(1e4 * torch.linalg.qr(torch.randn(STATISTICS, STATISTICS))[0])
    return head


def test_shares_are_counted_by_hand_and_in_the_order_of_the_statistics() -> None:
    image = torch.full((1, 3, 4, 4), 0.1)
    image[0, 0, 0] = 0.6  # a row of red
    image[0, 2] = 1.0  # blue everywhere
    shares = share_of_intensities(image)[0].view(INTENSITY_BINS, 3)
    expected = torch.tensor([[0.75, 1, 0], [0, 0, 0], [0.25, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(shares, expected)
    # as noise_statistics orders them: only what is shown there has a share here
    clean = torch.full((1, 3, 16, 16), 0.1)
    clean[0, 1] = 0.9
    _, shown = noise_statistics(clean, clean)
    torch.testing.assert_close(shown[:, :LEVELS], share_of_intensities(clean))


def test_without_a_head_the_mean_direction() -> None:
    z = unit(5, 2, 8)
    torch.testing.assert_close(Pooling()(z, torch.rand(5, 2, LEVELS)), F.normalize(z.mean(0)))


def test_patches_that_show_alike_count_alike() -> None:
    z, shares = unit(5, 2, STATISTICS), torch.rand(1, 2, LEVELS).expand(5, -1, -1)
    torch.testing.assert_close(Pooling(exact_head())(z, shares), F.normalize(z.mean(0)))


def test_who_sees_an_intensity_tells_its_noise(device: torch.device) -> None:
    head, z = exact_head().to(device), unit(4, 1, STATISTICS).to(device)
    shares = torch.zeros(4, 1, INTENSITY_BINS, 3, device=device)
    shares[:3, :, 0], shares[3, :, 3] = 1, 1  # three dark patches, a bright one
    told = head(z)[:, 0].detach()
    expected = told.mean(0)  # of correlations, and of intensities that none shows
    dark, bright = slice(0, 3), slice(LEVELS - 3, LEVELS)
    expected[dark] = (1.0001 * told[:3, dark].sum(0) + 0.0001 * told[3, dark]) / 3.0004
    expected[bright] = (0.0001 * told[:3, bright].sum(0) + 1.0001 * told[3, bright]) / 1.0004
    # the z that tells this, of any length
    solved = torch.linalg.solve(head.weight * STATISTICS**0.5, expected - head.bias)
    pooled = Pooling(head)(z, shares.flatten(2))[0]
    torch.testing.assert_close(pooled, F.normalize(solved, dim=0), rtol=0, atol=1e-4)


def test_a_patch_that_shows_an_intensity_twice_as_much_counts_four_times() -> None:
    head, z = exact_head(), unit(2, 1, STATISTICS)
    shares = torch.tensor([0.8, 0.4])[:, None, None].expand(2, 1, LEVELS)
    told = head(z)[:, 0].detach()
    expected = told.mean(0)
    expected[:LEVELS] = (0.6401 * told[0, :LEVELS] + 0.1601 * told[1, :LEVELS]) / 0.8002
    solved = torch.linalg.solve(head.weight * STATISTICS**0.5, expected - head.bias)
    pooled = Pooling(head)(z, shares)[0]
    torch.testing.assert_close(pooled, F.normalize(solved, dim=0), rtol=0, atol=1e-4)


def test_only_references_of_several_patches_are_pooled() -> None:
    torch.manual_seed(0)
    parts = NoiseEncoder(4, 8), NoiseGenerator(4, 8)
    plain = NoiseTransfer(*parts, reference_patch=32)
    pooling = NoiseTransfer(*parts, reference_patch=32, statistics=StatisticsHead(8))
    reference = torch.rand(2, 3, 32, 96) * torch.linspace(0.2, 1, 96)
    assert not torch.allclose(plain.embed(reference), pooling.embed(reference), atol=1e-3)
    one = reference[..., :32]
    torch.testing.assert_close(plain.embed(one), pooling.embed(one), rtol=0, atol=0)
    # each of a batch as alone
    alone = torch.cat([pooling.embed(image[None]) for image in reference])
    torch.testing.assert_close(pooling.embed(reference), alone)
