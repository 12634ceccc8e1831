"""Noise of references as an augmentation in anybody's training.

`SeededNoise` is what torchvision's transform below, deepinv's noise model (transform_deepinv.py)
and kornia's augmentation (transform_kornia.py) share: the same seed, the same noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from models.generator import placed_noise
from models.noise_transfer import NoiseTransfer, check_range, check_shape
from utils.images import float_to_integer, float_to_uint8, integer_to_float
from utils.seeding import derived_seed


class SeededNoise(nn.Module):
    """The noise of one at random of several references, a function of image and seed.

    references: noisy images (1, 3, H, W) in [0, 1], at least 16 pixels a side. strength: factor of
    the noise, or the range (low, high) that it is drawn from; see `NoiseTransfer.generate`.

    `to(device)` moves the network; images are computed where it is and return to where they were.
    No gradient flows.
    """

    def __init__(
        self,
        transfer: NoiseTransfer,
        references: Sequence[Tensor],
        strength: float | tuple[float, float] = 1.0,
    ) -> None:
        super().__init__()
        self.transfer = transfer
        self.register_buffer("z", torch.cat([transfer.embed(image) for image in references]))
        self.strength = strength if isinstance(strength, tuple) else (strength, strength)

    def forward(
        self, clean: Tensor, seeds: Sequence[int], strength: Tensor | None = None
    ) -> Tensor:
        """clean (B, 3, H, W) in [0, 1] -> noisy, whatever ran before; ValueError for others.

        seeds: one, or one each of as many equal parts of the batch: the images of a part share the
        reference and the strength, and have noise of their own. strength: in place of what is
        drawn, one or (B, 1, 1, 1).
        """
        check_shape(clean)
        check_range(clean)
        batch = clean.to(self.z.device, torch.float32).clamp(0, 1)
        each = len(batch) // len(seeds)
        draws = [np.random.default_rng(derived_seed(seed, len(self.z))) for seed in seeds]
        z = self.z[[int(draw.integers(len(self.z))) for draw in draws]]
        if strength is None:
            drawn = torch.tensor([draw.uniform(*self.strength) for draw in draws])
            strength = drawn.repeat_interleave(each)[:, None, None, None]
        noise = placed_noise([derived_seed(seed, i) for seed in seeds for i in range(each)])
        z, strength = z.repeat_interleave(each, 0), strength.to(batch)
        return self.transfer.generate(batch, z, noise, strength).to(clean)


class AddReferenceNoise(v2.Transform):
    """`SeededNoise`, with its arguments, on RGB images in a pipeline of torchvision.

    Takes PIL images, `tv_tensors.Image` and tensors (..., 3, H, W), uint8, uint16 or floats in
    [0, 1], and gives back their like; boxes, masks and labels pass unchanged. ValueError for other
    images.

    Each call draws one seed from torch's global generator, which is what DataLoader seeds in its
    workers: the same seed and number of workers, the same images. All images of a call share the
    reference; those of a batch get noise of their own, and equal ones beside each other the same,
    as a clean image and its crop would want it.
    """

    def __init__(
        self,
        transfer: NoiseTransfer,
        references: Sequence[Tensor],
        strength: float | tuple[float, float] = 1.0,
    ) -> None:
        super().__init__()
        self.noise = SeededNoise(transfer, references, strength)

    # What torchvision hands to `transform`; of plain tensors only the first, where no image is.
    _transformed_types = (v2._utils.is_pure_tensor, PIL.Image.Image, tv_tensors.Image)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"seed": int(torch.randint(2**62, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, PIL.Image.Image):
            if inpt.mode != "RGB":
                raise ValueError(f"expected an RGB image, got mode {inpt.mode}; convert it first")
            clean = integer_to_float(np.asarray(inpt))
            return PIL.Image.fromarray(float_to_uint8(self.add(clean, params["seed"])))
        if inpt.ndim < 3 or inpt.shape[-3] != 3:
            raise ValueError(f"expected (..., 3, H, W), got {tuple(inpt.shape)}")
        if inpt.is_floating_point():
            result = self.add(inpt, params["seed"])
        elif inpt.dtype in (torch.uint8, torch.uint16):
            most = torch.iinfo(inpt.dtype).max
            noisy = self.add(inpt.to(torch.float32) / most, params["seed"])
            depth = np.uint8 if most == 255 else np.uint16
            result = torch.from_numpy(float_to_integer(noisy, depth)).movedim(-1, -3)
            result = result.contiguous().to(inpt.device)
        else:
            raise ValueError(f"expected uint8, uint16 or floats in [0, 1], got {inpt.dtype}")
        return tv_tensors.wrap(result, like=inpt) if isinstance(inpt, tv_tensors.Image) else result

    def add(self, clean: Tensor, seed: int) -> Tensor:
        return self.noise(clean.reshape(-1, *clean.shape[-3:]), [seed]).view(clean.shape)
