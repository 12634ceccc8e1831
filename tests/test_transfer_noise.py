"""transfer_noise.py end to end, with small random networks, on CPU and GPU."""

import functools
import runpy
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import transfer_noise
from data.training_data import find_training_data
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.generator import placed_noise
from tests.helpers import read_png
from utils import folder_jobs
from utils.errors import UserError
from utils.folder_jobs import COMPARISON
from utils.photos import Tags, write_photo
from utils.seeding import derived_seed

pytestmark = pytest.mark.usefixtures("shallow")
LOAD = functools.cache(NoiseTransfer.from_checkpoint)  # a second or two each time


@pytest.fixture(scope="module")
def checkpoint(shallow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("NT")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(NoiseEncoder(4, 8).state_dict(), folder / "encoder_k.pt")
        torch.save(NoiseGenerator(4, 8).state_dict(), folder / "VUNet.pt")
    return folder


def write(path: Path, height: int, width: int, mode: str = "RGB") -> np.ndarray:
    """Random mid-grey pixels, so that noise is hardly clipped; written by Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(crc32(path.name.encode()))
    pixels = rng.integers(90, 166, (height, width, {"RGB": 3, "RGBA": 4, "L": 1}[mode]), np.uint8)
    Image.fromarray(pixels.squeeze(2) if mode == "L" else pixels).save(path)
    return pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write(tmp_path / "noisy.png", 40, 31)
    write(tmp_path / "photos" / "a.png", 24, 20)
    write(tmp_path / "photos" / "day one" / "b.JPG", 33, 17)
    write(tmp_path / "photos" / "day one" / "ä" / "c.png", 5, 3)
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """run(input, output, *flags) -> exit status, with the reference noisy.png on the CPU."""
    monkeypatch.setattr(NoiseTransfer, "from_checkpoint", LOAD)

    def run(source: Path, output: str, *flags: str) -> int:
        return transfer_noise.main(
            [
                *("--reference", str(tmp_path / "noisy.png"), "--input", str(source)),
                *("--output", str(tmp_path / output), "--nt", str(checkpoint)),
                *("--gpu", "cpu", *flags),
            ]
        )

    return run


def files(folder: Path) -> dict[str, bytes]:
    """All that is there but the page to look at: temporary files would be seen."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != COMPARISON)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_folder_keeps_structure_and_sizes(photos, run, tmp_path, capsys):
    (photos / "notes.txt").write_text("no image")
    assert run(photos, "out") == 0
    out = tmp_path / "out"
    assert files(out).keys() == {"a.png", "day one/b.png", "day one/ä/c.png"}
    assert read_png(out / "a.png").shape == (24, 20, 3)
    assert read_png(out / "day one" / "b.png").shape == (33, 17, 3)
    assert read_png(out / "day one" / "ä" / "c.png").shape == (5, 3, 3)
    said = capsys.readouterr().out
    assert "3 images written" in said
    assert "0 skipped" in said
    assert "1 .txt" in said


@pytest.mark.parametrize("seed", [0, 7])
def test_result_is_the_network_with_noise_of_seed_path_and_copy(
    photos, run, tmp_path, checkpoint, device, seed
):
    """Spelt out with Pillow and numpy; one level of 255 apart at most on a GPU (rounding)."""
    gpu = "cpu" if device.type == "cpu" else "0"
    run(photos, "out", "--copies", "2", "--seed", str(seed), "--gpu", gpu)
    network = NoiseTransfer.from_checkpoint(checkpoint)

    def tensor(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255

    for copy in (0, 1):
        noise = placed_noise([derived_seed(seed, crc32("day one/ä/c.png".encode()), copy)])
        noisy = network.transfer(
            tensor(photos / "day one/ä/c.png"), tensor(tmp_path / "noisy.png"), noise
        )
        expected = np.round(noisy[0].permute(1, 2, 0).numpy() * 255)
        found = read_png(tmp_path / "out" / f"day one/ä/c_{copy:03d}.png")
        assert np.abs(found - expected).max() <= (0 if gpu == "cpu" else 1)


def test_copies_differ_and_the_seed_decides(photos, run, tmp_path):
    run(photos, "one", "--copies", "3", "--seed", "1")
    run(photos, "again", "--copies", "3", "--seed", "1")
    run(photos, "other", "--copies", "3", "--seed", "2")
    one, again, other = (files(tmp_path / name) for name in ("one", "again", "other"))
    assert {n for n in one if n.startswith("a")} == {"a_000.png", "a_001.png", "a_002.png"}
    assert len(one) == 9
    assert one == again
    assert all(one[name] != other[name] for name in one)
    assert len({one[f"a_{k:03d}.png"] for k in range(3)}) == 3


def test_noise_does_not_depend_on_other_files(photos, run, tmp_path):
    run(photos, "all")
    (photos / "day one" / "b.JPG").unlink()
    write(photos / "0.png", 16, 16)
    run(photos, "fewer")
    run(photos / "a.png", "single")
    alone = (tmp_path / "single" / "a.png").read_bytes()
    assert (tmp_path / "all" / "a.png").read_bytes() == alone
    assert (tmp_path / "fewer" / "a.png").read_bytes() == alone


def test_same_content_under_two_names_gets_different_noise(photos, run, tmp_path):
    (photos / "twin.png").write_bytes((photos / "a.png").read_bytes())
    run(photos, "out")
    assert not np.array_equal(read_png(tmp_path / "out/a.png"), read_png(tmp_path / "out/twin.png"))


def test_grey_alpha_and_16_bit_equal_their_8_bit_colour_form(run, tmp_path):
    """One file name each in folders of their own, so that all get the same noise."""
    write(tmp_path / "noisy.png", 40, 31)
    grey = write(tmp_path / "grey" / "x.png", 11, 9, "L")
    Image.fromarray(np.repeat(grey, 3, axis=2)).save(tmp_path / "x.png")
    Image.fromarray(grey.squeeze(2).astype(np.uint16) * 257).save(tmp_path / "x16.tif")
    rgba = np.concatenate([np.repeat(grey, 3, axis=2), 255 - grey], axis=2)
    Image.fromarray(rgba).save(tmp_path / "xa.png")
    results = []
    for i, name in enumerate(("grey/x.png", "x.png", "xa.png", "x16.tif")):
        source = tmp_path / f"in{i}" / "x.png"  # OpenCV tells formats by content
        source.parent.mkdir()
        source.write_bytes((tmp_path / name).read_bytes())
        assert run(source, f"out{i}") == 0
        results.append(cv2.imread(str(tmp_path / f"out{i}" / "x.png"), cv2.IMREAD_UNCHANGED))
    assert results[-1].dtype == np.uint16
    results[-1] = np.round(results[-1] / 257)
    assert all(np.array_equal(results[0], result) for result in results[1:])


def test_damaged_and_too_large_files_are_skipped_and_named(
    photos, run, tmp_path, capsys, monkeypatch
):
    whole = (photos / "a.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").touch()
    write(photos / "large.png", 256, 256)
    monkeypatch.setattr(folder_jobs, "free_memory", lambda device: 5e5)
    assert run(photos, "out", "--copies", "2") == 1
    said = capsys.readouterr()
    assert len(files(tmp_path / "out")) == 2 * 3
    assert "6 images written" in said.out
    assert "3 skipped" in said.out
    assert f"{photos / 'cut.png'}: damaged" in said.err
    assert f"{photos / 'empty.jpg'}: an empty file" in said.err
    assert f"{photos / 'large.png'}: 0.1 megapixels need 0.0 GB of memory to be read" in said.err


def test_input_folder_may_hold_the_output(photos, run):
    first = run(photos, "photos/out"), files(photos / "out")
    again = run(photos, "photos/out", "--overwrite"), files(photos / "out")
    assert again == first
    assert len(first[1]) == 3


def test_reference_too_small(photos, run, tmp_path):
    write(tmp_path / "noisy.png", 15, 200)
    with pytest.raises(UserError, match=r"noisy\.png: 200x15 pixels, expected at least 16"):
        run(photos, "out")
    write(tmp_path / "noisy.png", 16, 16)
    assert run(photos, "out") == 0


def test_two_images_of_one_name_both_get_a_file(photos, run, tmp_path):
    """And each keeps the noise that it has alone."""
    write(photos / "b.png", 8, 8)
    run(photos, "out")
    alone = (tmp_path / "out" / "a.png").read_bytes()
    write(photos / "a.jpg", 8, 8)
    write(photos / "A.webp", 8, 8)
    run(photos, "both")
    both = files(tmp_path / "both")
    assert {n for n in both if n.lower().startswith("a.")} == {"a.png", "a.jpg.png", "A.webp.png"}
    assert both["a.png"] == alone
    assert run(photos, "same", "--format", "same") == 0
    assert {"a.png", "a.jpg", "A.webp", "day one/b.JPG"} < files(tmp_path / "same").keys()


def test_inputs_are_never_overwritten(photos, run, tmp_path):
    write(photos / "photos" / "a.png", 8, 8)  # would become photos/a.png if written to --output .
    before = files(tmp_path)
    with pytest.raises(UserError, match="holds the input"):
        run(photos, "photos")
    with pytest.raises(UserError, match="holds the input"):
        run(photos / "a.png", "photos")
    with pytest.raises(UserError, match="is an input"):
        run(photos, ".")
    write(tmp_path / "in" / "noisy.jpg", 8, 8)
    with pytest.raises(UserError, match=r"noisy\.png: is an input"):  # the reference
        run(tmp_path / "in", ".")
    assert before.items() <= files(tmp_path).items()


def test_nothing_to_do_and_bad_flags(photos, run, tmp_path):
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="no images"):
        run(tmp_path / "void", "out")
    with pytest.raises(UserError, match="no such image or folder"):
        run(tmp_path / "typo", "out")
    with pytest.raises(UserError, match="looks like a file"):
        run(photos, "out.png")
    with pytest.raises(UserError, match="looks like a file"):
        run(photos, "noisy.png")
    with pytest.raises(UserError, match="--copies 0"):
        run(photos, "out", "--copies", "0")
    with pytest.raises(UserError, match=r"encoder_k\.pt: no such checkpoint"):
        run(photos, "out", "--nt", str(tmp_path))
    (tmp_path / "noisy.png").unlink()
    with pytest.raises(UserError, match=r"noisy\.png: cannot be read"):
        run(photos, "out")
    with pytest.raises(SystemExit, match="2"):
        run(photos, "out", "--coppies", "2")


def test_script_exit_status(photos, tmp_path, checkpoint, monkeypatch, capsys):
    def status(*flags: str) -> object:
        monkeypatch.setattr("sys.argv", ["transfer_noise.py", "--gpu", "cpu", *flags])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(transfer_noise.__file__, run_name="__main__")
        return stop.value.code

    flags = ["--input", str(photos), "--output", str(tmp_path / "out")]
    flags += ["--nt", str(checkpoint), "--reference"]
    assert status(*flags, str(tmp_path / "noisy.png")) == 0
    (photos / "bad.png").write_bytes(b"\x89PNG")
    assert status(*flags, str(tmp_path / "noisy.png")) == 1
    assert status(*flags, str(photos / "bad.png")) == 2
    assert capsys.readouterr().err.endswith("fetch this file again or remove it\n")


# ------------------------------------------------------------------ several references, pairs, ...


@pytest.fixture
def references(tmp_path: Path) -> Path:
    for i, name in enumerate(("iso100", "iso800", "iso3200")):
        write(tmp_path / "refs" / f"{name}.png", 40, 31 + i)
    return tmp_path / "refs"


def test_each_reference_gives_what_it_gives_alone(photos, run, references, tmp_path):
    names = [references / f"{name}.png" for name in ("iso100", "iso800")]
    assert run(photos, "each", "--use", "each", "--reference", *map(str, names)) == 0
    each = files(tmp_path / "each")
    inside = ("a.png", "day one/b.png", "day one/ä/c.png")
    assert each.keys() == {f"{path.stem}/{name}" for path in names for name in inside}
    assert run(photos, "alone", "--reference", str(names[0])) == 0
    assert files(tmp_path / "alone").items() == {(n, each[f"iso100/{n}"]) for n in inside}
    assert each["iso100/a.png"] != each["iso800/a.png"]


def test_random_reference_and_mean_reference(photos, run, references, tmp_path, capsys):
    (references / "bad.png").write_bytes(b"no image")
    flags = "--reference", str(references), "--copies", "4"
    assert run(photos, "pairs", "--pairs", *flags) == 1  # the bad one is named
    assert "bad.png: damaged" in capsys.readouterr().err
    noisy = files(tmp_path / "pairs" / "noisy")
    assert {name.partition("/")[0] for name in noisy} == {"iso100", "iso800", "iso3200"}
    assert run(photos, "random", *flags) == 1
    random = files(tmp_path / "random")
    assert random.items() >= {(n.partition("/")[2], data) for n, data in noisy.items()}
    (references / "bad.png").unlink()
    assert run(photos, "mean", "--use", "mean", *flags) == 0
    assert files(tmp_path / "mean").keys() == {
        f"{stem}_{k:03d}.png" for stem in ("a", "day one/b", "day one/ä/c") for k in range(4)
    }


def test_pairs_are_what_the_trainer_takes(photos, run, tmp_path):
    assert run(photos, "mine", "--pairs", "--copies", "2") == 0
    sets = find_training_data(tmp_path / "mine")
    assert len(sets.pairs) == 6
    for pair in sets.pairs:
        clean, noisy = read_png(pair.clean), read_png(pair.noisy)
        assert clean.shape == noisy.shape
        assert 0 < np.abs(clean.astype(int) - noisy).mean() < 60
    found = {pair.clean.name: pair for pair in sets.pairs}
    np.testing.assert_array_equal(read_png(found["a_001.png"].clean), read_png(photos / "a.png"))
    before = files(tmp_path / "mine")
    found["a_001.png"].noisy.unlink()
    assert run(photos, "mine", "--pairs", "--copies", "2") == 0
    assert files(tmp_path / "mine") == before


def test_strength_is_a_factor(photos, run, tmp_path):
    """Mid-grey, so that nothing is clipped; rounding to levels is all that differs."""
    clean = read_png(photos / "a.png").astype(float)
    noise = {}
    for strength in ("0", "0.5", "1", "2"):
        run(photos / "a.png", strength, "--strength", strength)
        noise[strength] = read_png(tmp_path / strength / "a.png") - clean
    assert not noise["0"].any()
    assert np.abs(noise["1"]).max() > 3
    for strength in ("0.5", "2"):
        assert np.abs(noise[strength] - float(strength) * noise["1"]).max() <= 1.5
    with pytest.raises(UserError, match=r"--strength 2\.1: expected 0 to 2"):
        run(photos, "out", "--strength", "2.1")


@pytest.mark.parametrize(
    ("form", "name", "kind"),
    [("png", "a.png", "PNG"), ("tiff", "a.tif", "TIFF"), ("jpeg", "a.jpg", "JPEG"),
     ("webp", "a.webp", "WEBP"), ("same", "a.TIFF", "TIFF")],
)  # fmt: skip
def test_formats_depth_and_tags(run, tmp_path, form, name, kind):
    """Sixteen bits and the camera's tags go where they can."""
    write(tmp_path / "noisy.png", 40, 31)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    deep = np.random.default_rng(0).integers(20000, 40000, (20, 30, 3), np.uint16)
    write_photo(tmp_path / "in" / "a.TIFF", deep, Tags(exif))
    assert run(tmp_path / "in", "out", "--format", form) == 0
    with Image.open(tmp_path / "out" / name) as image:
        assert image.format == kind
        assert image.getexif()[0x010F] == "Maker"
        assert 0x0112 not in image.getexif()
    bits = cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED).dtype
    assert bits == (np.uint16 if kind in ("PNG", "TIFF") else np.uint8)


def test_tiles_do_not_show(run, tmp_path):
    write(tmp_path / "noisy.png", 40, 31)
    write(tmp_path / "in" / "a.png", 150, 110)
    run(tmp_path / "in", "whole")
    run(tmp_path / "in", "tiles", "--tile", "40")
    whole, tiles = (read_png(tmp_path / name / "a.png").astype(int) for name in ("whole", "tiles"))
    assert np.abs(whole - tiles).max() <= 1
    assert (whole != tiles).mean() < 0.01


def test_integer_references_embed_as_their_floats(checkpoint):
    network = LOAD(checkpoint)
    image = torch.randint(0, 65536, (1, 3, 40, 50), dtype=torch.int32).to(torch.uint16)
    for patch in (None, 16):
        network.reference_patch = patch
        expected = network.embed(image.to(torch.float32) / 65535)
        torch.testing.assert_close(network.embed(image), expected)
    network.reference_patch = None
