"""What a photo's noise is found to be, and what is said of photos unlike the training data."""

import csv
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve1d
from torch import Tensor

import inspect_references
import transfer_noise
from evaluation import bank as bank_command
from evaluation.references import FILE, Bank, blind_noise, open_bank, warn
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from tests.test_report import Page
from utils.checkpoint import sha256
from utils.errors import UserError
from utils.images import read_image, write_image
from utils.transfer_settings import TransferSettings

LOAD = functools.cache(NoiseTransfer.from_checkpoint)  # a second or two each time
pytestmark = pytest.mark.usefixtures("shallow")


def ramp(height: int = 256, width: int = 256) -> np.ndarray:
    """(H, W, 3) float64: 0.2 to 0.8 from left to right."""
    return np.linspace(0.2, 0.8, width)[:, None] * np.ones((height, 1, 3))


def stored(image: np.ndarray) -> np.ndarray:
    return (65535 * image).round().clip(0, 65535).astype(np.uint16)


# ------------------------------------------------------------------------------------- one photo


def test_white_noise_is_measured_by_intensity_and_channel() -> None:
    """Variance a x + b: 5 standard errors of a bin's, by 61 degrees of freedom a block, and 2% of
    the standard deviation, for the largest 1% of the blocks that are cut off."""
    a, b = np.array([0.004, 0.002, 0.0]), np.array([0.0002, 0.0005, 0.001])
    variance = a * ramp() + b
    rng = np.random.default_rng(0)
    found = blind_noise(stored(ramp() + np.sqrt(variance) * rng.standard_normal(ramp().shape)))
    assert found.sigma == pytest.approx(np.sqrt(variance.mean()), rel=0.02)
    middles = (np.arange(16) + 0.5) / 16
    blocks = 32 * 32 / (0.6 * 16)  # of a bin that the ramp fills
    for channel, curve in enumerate(found.curve):
        inside = (middles > 0.26) & (middles < 0.74)
        truth = np.sqrt(a[channel] * middles + b[channel])
        np.testing.assert_allclose(
            curve[inside], truth[inside], rtol=0.02 + 5 / np.sqrt(2 * 61 * blocks)
        )
        assert np.isnan(curve[(middles < 0.17) | (middles > 0.83)]).all()
    # 3 x 1024 blocks of 56 pairs of neighbours each way.
    np.testing.assert_allclose(found.correlation, 0, atol=5 / np.sqrt(3 * 1024 * 56))
    assert found.flat > 0.98  # 1% of pure noise exceeds the limit, too


@pytest.mark.parametrize("a", [0.1, 0.25])
def test_correlation_of_neighbours_each_way(a: float) -> None:
    """Kernel (a, 1, a) along rows alone: 2 a / (1 + 2 a^2) there, of which up to a tenth is missed,
    and 0 below; 5 standard errors of some 0.003 each."""
    noise = np.random.default_rng(0).standard_normal((256, 256, 3))
    noise = convolve1d(noise, [a, 1, a], axis=1, mode="wrap")
    across, down = blind_noise(stored(0.5 + 0.03 * noise)).correlation
    truth = 2 * a / (1 + 2 * a**2)
    assert 0.9 * truth - 0.015 < across < truth + 0.015
    assert abs(down) < 0.015


def test_texture_is_not_flat() -> None:
    """The left half is, 128 of 256 pixels, but for what pure noise exceeds (1%, at most 2)."""
    noise = 0.02 * np.random.default_rng(0).standard_normal((256, 256, 3))
    stripes = 0.2 * np.sin(np.arange(256))[:, None, None] * (np.arange(256) >= 128)[:, None]
    found = blind_noise(stored(0.5 + stripes + noise))
    assert 0.48 < found.flat <= 0.5
    assert found.sigma == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("size", [(16, 16), (17, 300), (129, 40), (640, 260)])
@pytest.mark.parametrize("grey", [0, 0.5, 1])
def test_any_size_and_no_noise(size: tuple[int, int], grey: float) -> None:
    found = blind_noise(stored(np.full((*size, 3), grey)))
    assert found.sigma == 0
    assert np.isnan(found.correlation).all()
    assert found.flat == (grey == 0.5)  # black and white are clipped


# -------------------------------------------------------------------------------------- the bank


def at(*degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def small_bank(**changes) -> Bank:
    """Kinds with their centres at 5, 45 and 90 degrees."""
    values = dict(encoder="", reference_patch=None, origin="test") | changes
    return Bank.build(at(0, 10, 40, 50, 90), list("aabbc"), [0.1, 0.2, 0.3, 0.4, 0.5], **values)


def test_thresholds_leave_the_photos_own_kind_out() -> None:
    bank = small_bank()
    # To the nearest other centre: 0 -> 45, 10 -> 45, 40 -> 5, 50 -> 90, 90 -> 45.
    usual, far = np.percentile([45, 35, 35, 40, 45], (95, 99))
    assert bank.thresholds.usual == pytest.approx(usual, abs=0.05)  # stored as float16
    assert bank.thresholds.far == pytest.approx(far, abs=0.05)
    assert bank.thresholds.flat == pytest.approx(0.12)  # 1/5 of the way to the second
    names, distances = zip(*bank.nearest(at(20)[0]), strict=True)
    assert names == ("a", "b", "c")
    assert distances == pytest.approx((15, 25, 70), abs=0.05)


def test_what_is_said_carries_the_numbers() -> None:
    bank = small_bank()
    assert warn(bank, at(20)[0], 0.5) == []
    (far,) = warn(bank, at(180)[0], 0.5)
    assert far.word == "far"
    assert "90.0 degrees from the nearest known kind (c)" in far.text
    (bare,) = warn(bank, at(20)[0], 0.05)
    assert bare.word == "not flat"
    assert "5.0% of it is flat" in bare.text


def test_a_bank_comes_back_as_it_was(tmp_path: Path) -> None:
    bank = small_bank(reference_patch=64, encoder="abc")
    bank.write(tmp_path / FILE)
    again = Bank.read(tmp_path / FILE)
    np.testing.assert_array_equal(again.embeddings, bank.embeddings)
    np.testing.assert_array_equal(again.kind, bank.kind)
    assert (again.kinds, again.thresholds) == (bank.kinds, bank.thresholds)
    assert (again.encoder, again.reference_patch, again.origin) == ("abc", 64, "test")
    data = (tmp_path / FILE).read_bytes()
    for damaged in (b"", data[:200], data[:-50], data.replace(b"thresholds", b"thrasholds")):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(UserError, match=r"bank\.npz: no bank of embeddings; make it"):
            Bank.read(tmp_path / FILE)


def test_one_kind_makes_no_bank() -> None:
    with pytest.raises(UserError, match="at least two"):
        Bank.build(at(0, 1), ["a", "a"], [1, 1], "", None, "test")


# ----------------------------------------------------------------------------------- the scripts


def photo(path: Path, seed: int, noise: float, texture: float = 0.0, size: int = 64) -> None:
    """A smooth picture, or one of a checkerboard of 2x2 fields, under white noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    picture = 0.45 + 0.1 * np.sin(3 * x + seed)[..., None] * [1, 0.9, 0.8]
    picture = picture + 0.05 * y[..., None]
    picture += texture * ((np.mgrid[:size, :size] // 2).sum(0) % 2 - 0.5)[..., None]
    image = 255 * (picture + noise * rng.standard_normal(picture.shape))
    write_image(path, image.round().clip(0, 255).astype(np.uint8))


def strength(image: np.ndarray) -> float:
    """Of (3, H, W), by the difference of horizontal neighbours: of white noise its deviation."""
    return np.diff(image / 255, axis=-1).std() / np.sqrt(2)


def embed_strength(network: NoiseTransfer, reference: Tensor) -> Tensor:
    """In place of an encoder's: 20 degrees further for each doubling of the strength, so that
    distances are known. (A random encoder's embeddings hardly tell one noise from another.)"""
    angle = np.radians(20 * np.log2(strength(reference[0].numpy()) / 0.01))
    return torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float32)


@pytest.fixture(scope="module")
def checkpoint(shallow: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random networks, and a bank of five kinds of noise: sigma 0.01, 0.014, ... 0.04."""
    root = tmp_path_factory.mktemp("trained")
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        (root / "NT").mkdir()
        torch.save(NoiseEncoder(4, 2).state_dict(), root / "NT/encoder_k.pt")
        torch.save(NoiseGenerator(4, 2).state_dict(), root / "NT/VUNet.pt")
        patch.setattr(NoiseTransfer, "from_checkpoint", LOAD)
        patch.setattr(NoiseTransfer, "embed", embed_strength)
        for k in range(5):
            for i in range(2):
                name = f"kind_{k}/{i}.png"
                photo(root / "pairs/noisy" / name, 10 * k + i, 0.01 * 2 ** (k / 2))
                photo(root / "pairs/clean" / name, 10 * k + i, 0)
        make_bank(root)
        yield root / "NT"


def make_bank(root: Path, *flags: str) -> None:
    folders = ("--pairs", str(root / "pairs"), "--nt", str(root / "NT"))
    bank_command.main([*folders, "--gpu", "cpu", *flags])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Like the training data, ten times as strong, a checkerboard, and one that is cut off."""
    photo(tmp_path / "photos/like.png", 100, 0.022)
    photo(tmp_path / "photos/more/like.png", 101, 0.033)
    photo(tmp_path / "photos/strong.png", 102, 0.25)
    photo(tmp_path / "photos/checks.png", 103, 0.02, texture=0.5)
    data = (tmp_path / "photos/like.png").read_bytes()
    (tmp_path / "photos/cut <off>.png").write_bytes(data[:1000])
    (tmp_path / "photos/notes.txt").write_text("no photo")
    return tmp_path / "photos"


def inspect(photos: Path, checkpoint: Path, *flags: str) -> tuple[int, dict[str, dict], Page]:
    """Exit status, rows of the table by photo, page."""
    out = photos.parent / "out"
    argv = [str(photos), "--output", str(out), "--nt", str(checkpoint), "--gpu", "cpu"]
    status = inspect_references.main([*argv, *flags])
    with open(out / "references.csv", newline="", encoding="utf-8") as file:
        rows = {row["photo"]: row for row in csv.DictReader(file)}
    page = Page(out / "references.html")
    page.check()
    return status, rows, page


def test_outliers_are_warned_of_and_others_are_not(photos, checkpoint, capsys) -> None:
    status, rows, page = inspect(photos, checkpoint)
    assert status == 1
    assert set(rows) == {"like.png", "more/like.png", "strong.png", "checks.png"}
    for name, row in rows.items():
        assert name in page.texts("td")
        assert (row["verdict"] == "known") == ("like" in name), row
        assert bool(row["warnings"]) == ("like" not in name)
    # 0.022 is nearest to 0.02, log2(1.1) = 0.14 doublings away: 2.8 degrees. 3 x 64 x 63
    # differences (of correlation -1/2) have their strength within 5 x 0.8%, or 1.1 degrees, and so
    # has the kind.
    assert rows["like.png"]["kind_1"] == "pairs/kind_2"
    assert float(rows["like.png"]["distance"]) == pytest.approx(2.8, abs=1.5)
    strong = read_image(photos / "strong.png").transpose(2, 0, 1)
    doublings = np.log2(strength(strong) / 0.04)
    assert doublings > 2
    assert rows["strong.png"]["kind_1"] == "pairs/kind_4"
    assert float(rows["strong.png"]["distance"]) == pytest.approx(20 * doublings, abs=1.5)
    assert "far" in rows["strong.png"]["verdict"]
    # 64 blocks of 61 degrees of freedom, three channels: a standard error of 0.7%.
    assert float(rows["more/like.png"]["std"]) == pytest.approx(255 * 0.033, rel=0.05)
    out, err = capsys.readouterr()
    assert "2 doubtful, 1 skipped" in out
    assert "strong.png: its noise is" in out
    assert "cut <off>.png: damaged" in err
    assert any("cut <off>.png: damaged" in text for text in page.texts("li"))


def test_a_bank_has_its_seed_and_all_its_kinds(checkpoint, tmp_path) -> None:
    """The same command, the same file; synthetic noise on photographs, and resized pairs, too."""
    root = checkpoint.parent
    make_bank(root, "--output", str(tmp_path / "again.npz"))
    assert (tmp_path / "again.npz").read_bytes() == (checkpoint / FILE).read_bytes()
    photos = ("--photos", str(root / "pairs/clean"), "--synthetic", "2", "--per-kind", "1")
    path = tmp_path / "all.npz"
    make_bank(root, *photos, "--white-pairs", str(root / "pairs"), "--output", str(path))
    bank = Bank.read(path)
    assert len(bank.embeddings) == 5 + 5 + 2
    assert len(bank.kinds) == 5 + 2  # resized ones have the same names here
    assert [kind.split(",")[0] for kind in bank.kinds[5:]] == ["synthetic/000", "synthetic/001"]
    assert not any(str(tmp_path.parent) in kind for kind in bank.kinds)


def test_camera_and_iso_are_of_the_exif_data(checkpoint, tmp_path) -> None:
    photo(tmp_path / "a.png", 0, 0.02)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Maker X100"
    exif.get_ifd(0x8769)[0x8827] = 800
    (tmp_path / "photos").mkdir()
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "photos/a.jpg", quality=100, exif=exif)
        image.save(tmp_path / "photos/b.jpg", quality=100)
    status, rows, _ = inspect(tmp_path / "photos", checkpoint)
    assert status == 0
    assert [(r["camera"], r["iso"]) for r in rows.values()] == [
        ("Maker X100", "ISO 800"),
        ("unknown", "unknown"),
    ]


def test_the_shipped_bank_is_of_the_shipped_weights() -> None:
    """The command that makes it anew is in ckpts/README.md."""
    folder = Path(__file__).parents[1] / "ckpts/NT"
    bank = Bank.read(folder / FILE)
    assert bank.encoder == sha256(folder / "encoder_k.pt")
    assert bank.reference_patch == TransferSettings.read(folder).reference_patch


def test_without_a_bank_and_with_one_of_other_weights(photos, checkpoint, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in ("VUNet.pt", "encoder_k.pt"):
        (other / file).write_bytes((checkpoint / file).read_bytes())
    _, rows, page = inspect(photos, other)
    assert {row["verdict"] for row in rows.values()} == {"-"}
    assert "none judged" in capsys.readouterr().out
    assert any("no bank" in text for text in page.texts("p"))
    (other / FILE).write_bytes((checkpoint / FILE).read_bytes())
    network = NoiseTransfer.from_checkpoint(other)
    assert open_bank(other, network) is not None
    assert open_bank(other, NoiseTransfer.from_checkpoint(other, reference_patch=16)) is None
    assert (
        "embedded whole, but references are now embedded in patches of 16"
        in capsys.readouterr().out
    )
    torch.save(NoiseEncoder(4, 2).state_dict(), other / "encoder_k.pt")
    assert sha256(other / "encoder_k.pt") != sha256(checkpoint / "encoder_k.pt")
    assert open_bank(other, network) is None
    assert "is of other weights" in capsys.readouterr().out


def test_transfer_noise_warns_of_the_same(photos, checkpoint, tmp_path, capsys) -> None:
    (photos / "cut <off>.png").unlink()
    photo(tmp_path / "clean.png", 1, 0)
    paths = ("--input", str(tmp_path / "clean.png"), "--output", str(tmp_path / "noisy"))
    flags = ("--reference", str(photos), *paths, "--nt", str(checkpoint), "--gpu", "cpu")
    assert transfer_noise.main([*flags]) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]
    assert {Path(x.split(": ")[1]).name for x in lines} == {"strong.png", "checks.png"}
    line, *_ = (x for x in lines if "strong.png" in x)
    assert " degrees from the nearest known kind (pairs/kind_" in line
