"""Write the seed corpus of tests/test_fuzz.py: a small intact file of each kind that is read.

python -m tests.seeds.make_seeds
"""

import io
from pathlib import Path

import cv2
import h5py
import numpy as np
import scipy.io
import torch
from PIL import Image

HERE = Path(__file__).parent


def main() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2))
    image.save(HERE / "rgb.png")
    image.convert("P").save(HERE / "palette.png")
    image.convert("RGBA").save(HERE / "alpha.png", icc_profile=b"profile" * 9)
    image.save(HERE / "frames.png", save_all=True, append_images=[image.rotate(180)])
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(HERE / "gray16.png")
    image.save(HERE / "rgb.jpg", quality=60)
    image.save(HERE / "progressive.jpg", quality=60, progressive=True, exif=image.getexif())
    image.save(HERE / "rgb.bmp")
    image.convert("P").save(HERE / "palette.bmp")
    image.save(HERE / "rgb.tif")
    image.save(HERE / "deflate.tif", compression="tiff_adobe_deflate", big_tiff=True)
    image.save(HERE / "pages.tif", compression="tiff_lzw", save_all=True, append_images=[image])
    image.save(HERE / "lossy.webp")
    image.save(HERE / "lossless.webp", lossless=True)
    image.save(HERE / "frames.webp", save_all=True, append_images=[image.rotate(180)])

    blocks = rng.integers(0, 256, (2, 2, 4, 5, 3), dtype=np.uint8)
    more = {"notes": "text", "list": np.array([1, "x"], dtype=object), "Blocks": blocks}
    scipy.io.savemat(HERE / "v5.mat", more)
    scipy.io.savemat(HERE / "v5_compressed.mat", more, do_compression=True)
    for name, how in (
        ("v73.mat", {}),
        ("v73_chunked.mat", {"chunks": (3, 5, 2, 2, 1), "compression": "gzip", "shuffle": True}),
    ):
        with h5py.File(HERE / name, "w", userblock_size=512) as file:
            file.create_dataset("Blocks", data=blocks.T, **how)
            file["Blocks"].attrs["MATLAB_class"] = np.bytes_("uint8")

    state = {"a.weight": torch.rand(3, 4), "b": torch.zeros(2).half(), "n": torch.tensor(7)}
    for name, zipped in (("weights.pt", True), ("weights_legacy.pt", False)):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        (HERE / name).write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
