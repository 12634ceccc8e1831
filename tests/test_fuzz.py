"""Damaged and hostile files: every reader gives valid data or a UserError, and nothing else.

The corpus in tests/seeds is cut, spliced and overwritten by hypothesis, always in the same ways.
To search further: FUZZ_EXAMPLES=100000 python -X faulthandler -m pytest -s tests/test_fuzz.py
What was found so is in tests/seeds/found.
"""

import contextlib
import os
import re
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import data.mat
import utils.checkpoint
from data.mat import MatBlocks
from utils.checkpoint import load_state
from utils.errors import UserError
from utils.images import _read_header, read_image, read_image_size

SEEDS = Path(__file__).parent / "seeds"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
# Printed by the decoders themselves, which cannot be told not to.
DECODERS = re.compile(
    r"libpng (error|warning): |Corrupt JPEG data: |Premature end of JPEG|Invalid SOS param|"
    r"Unsupported marker|Inconsistent progression|Warning: unknown JFIF|Unknown Adobe"
)

# Numbers that headers are overwritten with: around the limits of signed and unsigned fields.
NUMBERS = sorted({n + d for n in (0, 2**7, 2**8, 2**15, 2**16, 2**31, 2**32) for d in (-1, 0, 1)})
FIELDS = ("<H", ">H", "<I", ">I", "<Q", ">Q", "B")


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of the seeds after one to four accidents or attacks."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(("byte", "bit", "number", "head", "cut", "splice", "repeat")))
        if kind == "byte":
            data[at] = draw(st.integers(0, 255))
        elif kind == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind in ("number", "head"):
            field = draw(st.sampled_from(FIELDS))
            at = min(at, draw(st.integers(0, 63))) if kind == "head" else at
            number = draw(st.sampled_from(NUMBERS)) % 256 ** struct.calcsize(field)
            data[at : at + struct.calcsize(field)] = struct.pack(field, number)
        elif kind == "cut":
            del data[at:]
        elif kind == "splice":
            other = draw(st.sampled_from(seeds))
            start = draw(st.integers(0, len(other) - 1))
            length = draw(st.integers(1, 64))
            data[at : at + length * draw(st.integers(0, 1))] = other[start : start + length]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 9))
    return bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG's chunks with the checksums that fit them, so that decoders see what is inside."""
    data, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


def read_as_image(path: Path) -> None:
    _read_header.cache_clear()  # the files follow each other faster than a clock ticks
    image = read_image(path)
    assert image.dtype in (np.uint8, np.uint16)
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert read_image_size(path) == image.shape[:2]


def read_as_mat(path: Path) -> None:
    blocks = MatBlocks(path, "Blocks")
    assert blocks[0].dtype == np.uint8
    assert blocks[len(blocks) - 1].shape == (*blocks.size(0), 3)


def read_as_weights(path: Path) -> None:
    for key, value in load_state(path).items():
        assert isinstance(key, str)
        assert value.dtype == torch.float32 or not value.is_floating_point()
        value.clone()


READERS: dict[str, tuple[Callable[[Path], None], int]] = {
    "png": (read_as_image, 300),
    "jpg": (read_as_image, 300),
    "bmp": (read_as_image, 200),
    "tif": (read_as_image, 300),
    "webp": (read_as_image, 300),
    "mat": (read_as_mat, 500),
    "pt": (read_as_weights, 400),
}


@pytest.mark.parametrize("suffix", READERS)
def test_reader_gives_data_or_a_user_error(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    # Bounds so low that to heed them shows in the memory used.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**19)
    monkeypatch.setattr(data.mat, "MAX_BYTES", 2**22)
    monkeypatch.setattr(utils.checkpoint, "MAX_ELEMENTS", 2**20)
    reader, examples = READERS[suffix]
    seeds = [path.read_bytes() for path in sorted(SEEDS.glob(f"*.{suffix}"))]
    assert seeds
    path, results = tmp_path / f"damaged.{suffix}", []

    @settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,  # the machine may be busy with other things
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(seeds), st.booleans())
    def run(content: bytes, repaired: bool) -> None:
        path.write_bytes(with_checksums(content) if repaired and suffix == "png" else content)
        try:
            reader(path)
        except UserError as error:
            message = str(error)
        else:
            results.append("read")
            return
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert len(message) < 700
        results.append("refused")

    for seed in seeds:
        path.write_bytes(seed)
        reader(path)  # the seeds themselves are intact
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    # Some ten times what the bounds above allow: fragments, libraries' own buffers, hypothesis.
    assert (after - before) * unit < 200e6
    assert results.count("refused") > len(results) / 10  # the mutations do bite
    noise = [line for line in capfd.readouterr().err.splitlines() if not DECODERS.match(line)]
    assert noise == []
    if EXAMPLES:
        print(suffix, {kind: results.count(kind) for kind in ("read", "refused")})


@pytest.mark.parametrize("name", sorted(path.name for path in (SEEDS / "found").iterdir()))
def test_what_was_found_stays_fixed(name: str) -> None:
    """Of each: 50 times, since what overwrites memory need not crash at once.

    frames_without_control.png: OpenCV 5.0.0 crashed on it. chunk_larger_than_declared.mat: HDF5 2.0
    wrote 71 bytes into h5py's buffer of 60.
    """
    path = SEEDS / "found" / name
    for _ in range(50):
        with contextlib.suppress(UserError):
            READERS[path.suffix[1:]][0](path)
