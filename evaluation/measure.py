"""Measuring a noise generator or a denoiser on a test set, image by image (method: paper, Sec. 4).

Every random number is drawn on the CPU from (seed, image's index, pass), so that an image's scores
do not depend on the device, the batch size, the number of workers, or which other images are
measured. `supp_tbl.py` and the validation of the training scripts share these functions.

Networks compute in float32, whatever precision a run trains in: scores are compared with other
runs', other machines' and other papers', and bf16 and TF32 would move them.
"""

from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from data.noise import NoiseModelDistribution, add_noise
from evaluation.batches import Draw, How, Measured, Scores, evaluation_mode, measure_all
from evaluation.image_sets import CleanImages, ImagePairs
from evaluation.protocols import (
    OTHER_HALF,
    ReferenceProtocol,
    Transfer,
    floor_pair,
    reference_indices,
    transfer_between_halves,
)
from models.generator import per_image_noise
from utils.metrics import (
    akld,
    autocorrelation_distance,
    directional_distance,
    kld,
    ks,
    mean_shift,
    noise_level_distance,
    noise_std_ratio,
    psnr,
    ssim,
    worst_noise_level,
)
from utils.noise_statistics import DIRECTIONS, directional_correlations, neighbour_correlation
from utils.seeding import derived_seed, randomness

Denoiser = Callable[[Tensor], Tensor]
"""denoiser(noisy) -> denoised, both (B, 3, H, W); need not be clipped."""

NoiseMeasures = Callable[[Tensor, Tensor, Tensor], Measured]
"""measures(fake, real, clean), (B, 3, H, W) each: `noise_scores` or `scene_scores`."""

# NaN for a pair (or a channel) without noise; the flat ratio for all but flat images.
NEEDS_NOISE = {
    *("std_ratio", "std_ratio_flat", "corr_generated", "corr_real", "acf", "nlf", "nlf_worst"),
    *("corr_distance", *(f"corr_{d}{of}" for d in DIRECTIONS for of in ("", "_real"))),
}


def noise_scores(fake: Tensor, real: Tensor, clean: Tensor) -> Measured:
    """Every measure of generated against real noise, (B,) each (utils/metrics.py).

    std_ratio: generated over real; corr_generated, corr_real: of neighbouring pixels; acf and nlf:
    distances of the autocorrelations and of the noise level functions.
    """
    return {
        "akld": akld(fake, real, clean),
        "ks": ks(fake, real, clean),
        "kld": kld(fake, real, clean, bins="unit"),
        "kld_tails": kld(fake, real, clean, bins="tails"),
        "std_ratio": noise_std_ratio(fake, real, clean),
        "corr_generated": neighbour_correlation(fake, clean),
        "corr_real": neighbour_correlation(real, clean),
        "acf": autocorrelation_distance(fake, real, clean),
        "nlf": noise_level_distance(fake, real, clean),
    }


def scene_scores(fake: Tensor, real: Tensor, clean: Tensor) -> Measured:
    """What can go wrong with noise of another scene, (B,) each (utils/metrics.py).

    std_ratio, and by intensity and channel nlf (mean) and nlf_worst; mean_shift, the colour cast;
    corr_<direction> and corr_<direction>_real, and corr_distance between them; akld.
    """
    generated, true = (directional_correlations(x, clean).unbind(1) for x in (fake, real))
    return {
        "std_ratio": noise_std_ratio(fake, real, clean),
        "nlf": noise_level_distance(fake, real, clean),
        "nlf_worst": worst_noise_level(fake, real, clean),
        "mean_shift": mean_shift(fake, real),
        **{f"corr_{d}": r for d, r in zip(DIRECTIONS, generated, strict=True)},
        **{f"corr_{d}_real": r for d, r in zip(DIRECTIONS, true, strict=True)},
        "corr_distance": directional_distance(fake, real, clean),
        "akld": akld(fake, real, clean),
    }


def evaluate_transfer(
    transfer: Transfer,
    test_set: ImagePairs,
    *,
    reference: ReferenceProtocol | Sequence[int] = "paired",
    measures: NoiseMeasures = noise_scores,
    draws: int = 1,
    **how: Unpack[How],
) -> Scores:
    """Noise generated for each clean image against its real noise, by `measures`.

    reference: what the noise is taken from (evaluation/protocols.py), or for each image the index
    of the one whose noisy side it is. draws: noisy images per image; its scores are their means.
    """
    seed = how.pop("seed", 0)
    count = min(how.get("limit") or len(test_set), len(test_set))
    if isinstance(reference, str):
        reference = reference_indices(test_set, count, reference, seed)
    references = reference

    def read(index: int, _pass: int) -> tuple[Tensor, ...]:
        clean, noisy = test_set[index]
        other = references[index]
        return clean, noisy, noisy if other in (index, OTHER_HALF) else test_set[other][1]

    def measure(images: Sequence[Tensor], batch: Sequence[Draw]) -> Measured:
        clean, noisy, other = images
        # The first draw's seed is (seed, image): more draws do not change it.
        noise = per_image_noise([derived_seed(seed, *(d if d[1] else d[:1])) for d in batch])
        if references[batch[0][0]] == OTHER_HALF:
            fake = transfer_between_halves(transfer, clean, noisy, noise)
        else:
            fake = transfer(clean, other, noise)
        return measures(fake.float(), noisy, clean)

    def alike(index: int) -> tuple:
        """Images of one batch have it in common: the sizes of what is stacked, and the call."""
        other = references[index]
        return other == OTHER_HALF, None if other in (index, OTHER_HALF) else test_set.size(other)

    with evaluation_mode(transfer):
        return measure_all(test_set, read, measure, draws, alike, **how)


def evaluate_floor(
    test_set: ImagePairs,
    *,
    measures: NoiseMeasures = noise_scores,
    **how: Unpack[How],
) -> Scores:
    """Real noise against another draw of it (`floor_pair`): the best that any model can reach.

    Nothing is random; `seed` is taken so that all evaluations are called alike.
    """
    how.pop("seed", None)

    def read(index: int, _pass: int) -> tuple[Tensor, ...]:
        clean, noisy = test_set[index]
        other = test_set.second_shot(index)
        if other is None:
            return floor_pair(clean, noisy, None)
        second_clean, second_noisy = test_set[other]
        return floor_pair(clean, noisy, second_noisy - second_clean)

    def measure(images: Sequence[Tensor], _draws: Sequence[Draw]) -> Measured:
        return measures(*images)

    def alike(index: int) -> tuple:
        return (test_set.second_shot(index) is None,)

    return measure_all(test_set, read, measure, 1, alike, **how)


def evaluate_denoiser(
    denoiser: Denoiser,
    test_set: CleanImages | ImagePairs,
    *,
    noise: NoiseModelDistribution | None = None,
    passes: int = 1,
    **how: Unpack[How],
) -> Scores:
    """PSNR and SSIM of the denoised image, clipped to [0, 1], and of the noisy input.

    noise: what to put on the clean images, drawn anew for every image and pass and not quantised to
    8 bits (a fixed setting has ranges of no width); None takes the test set's own noisy images.
    Returns psnr, ssim, psnr_noisy and ssim_noisy, means over the passes.
    """
    seed = how.pop("seed", 0)

    def read(index: int, pass_: int) -> tuple[Tensor, Tensor]:
        item = test_set[index]
        if noise is None:
            clean, noisy = item
            return clean, noisy
        clean = item if isinstance(item, Tensor) else item[0]
        rng = randomness(seed, index, pass_)
        return clean, add_noise(clean[None], noise.draw(1, rng.choices), rng.pixels)[0]

    def measure(images: Sequence[Tensor], _draws: Sequence[Draw]) -> Measured:
        clean, noisy = images
        if noisy.device.type == "cpu":  # convolutions, SSIM's too, are up to 1.5 times faster so
            clean = clean.contiguous(memory_format=torch.channels_last)
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        denoised = denoiser(noisy).float().clamp(0, 1)
        return {
            "psnr": psnr(denoised, clean),
            "ssim": ssim(denoised, clean),
            "psnr_noisy": psnr(noisy, clean),
            "ssim_noisy": ssim(noisy, clean),
        }

    with evaluation_mode(denoiser):
        return measure_all(test_set, read, measure, passes, **how)


def mean_over_images(scores: Scores) -> dict[str, float]:
    """The mean of each measure; where the noise has no spread to compare, over the other images."""
    means = {}
    for name, values in scores.items():
        if name in NEEDS_NOISE and not np.isnan(values).all():
            values = values[~np.isnan(values)]
        means[name] = float(values.mean())
    return means
