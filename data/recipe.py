"""What a training script says of how its items are made (docs/method.md 4, 5, 9)."""

from dataclasses import dataclass

from data.augment import SceneDistribution
from data.noise import NoiseCorrelationDistribution, NoiseModelDistribution

NO_NOISE = NoiseModelDistribution((1, 0, 0), sigma=(0, 0), chi=(1, 1))
NO_CORRELATION = NoiseCorrelationDistribution(0.0)


@dataclass(frozen=True)
class Recipe:
    """What happens to images on their way to a training item; by default nothing."""

    # Real items
    p_alpha: float = 0.0
    """Share of those whose noise is scaled, by the same number in both views."""
    alpha: tuple[float, float] = (1.0, 1.0)
    """Range of that number."""
    p_cutmix: float = 0.0
    """Share of views with a box that shows another crop of the pair."""
    cutmix_sides: tuple[float, float] = (0.25, 0.75)
    """Range of the box's sides, in sides of the patch."""
    lost_correlation: NoiseCorrelationDistribution = NO_CORRELATION
    """What is given to the noise of resized pairs, which lost its own."""

    # Synthetic items
    noise: NoiseModelDistribution = NO_NOISE
    p_real_clean: float = 0.0
    """Share of clean patches that come from the real pairs' clean images."""
    blur: tuple[int, float] = (1, 1.0)
    """Taps and sigma, in pixels, of the Gaussian that takes the last noise off these."""

    # Beyond the paper
    correlation: NoiseCorrelationDistribution | None = None
    """Of the synthetic noise, the same in both views."""
    p_flat: float = 0.0
    """Share of clean patches of synthetic items that become their mean colour."""
    scenes: SceneDistribution | None = None
    """How clean patches vary, of synthetic items and of resized pairs."""
