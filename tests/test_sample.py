"""The raw pipeline against its noise model and closed forms, and the sample's files."""

import itertools
import json
import math
import re
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from data import camera, sample
from utils.errors import UserError
from utils.files import list_images
from utils.images import read_image


def correlation(noise: np.ndarray) -> float:
    """Mean correlation of adjacent pixels of (H, W, 3), over both directions and the channels."""
    pairs = [(noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])]
    return np.mean(
        [
            np.corrcoef(a[..., c].ravel(), b[..., c].ravel())[0, 1]
            for a, b in pairs
            for c in range(3)
        ]
    )


def grey(level: int, side: int = 200) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


# ---- raw pipeline --------------------------------------------------------------------------------


@pytest.mark.parametrize(("phone", "iso"), [("S6", 3200), ("N6", 3200), ("GP", 100), ("IP", 800)])
@pytest.mark.parametrize("level", [0.0, 0.05, 0.8])
def test_raw_noise_has_the_measured_variance(phone: str, iso: int, level: float) -> None:
    n = 400
    noise = camera.raw_noise(
        np.full((n, n), level), camera.noise_level(phone, iso), np.random.default_rng(0)
    )
    # the figures of the noise level functions, written out again
    beta1, beta2 = {
        ("S6", 3200): (0.019930, 0.000002),
        ("N6", 3200): (0.013773, 0.000833),
        ("GP", 100): (0.000228, 0.000002),
        ("IP", 800): (0.000723, 0.000003),
    }[phone, iso]
    variance = beta1 * level + beta2
    # a sample variance of n^2 normal draws is off by sqrt(2) / n of itself (one sigma)
    assert noise.var() == pytest.approx(variance, rel=5 * math.sqrt(2) / n)
    assert noise.mean() == pytest.approx(0, abs=5 * math.sqrt(variance) / n)


def test_every_iso_has_two_phones_at_least() -> None:
    assert len(camera.NOISE_LEVEL) == 22
    phones = Counter(iso for _, iso in camera.NOISE_LEVEL)
    assert set(phones) == {100, 400, 800, 1600, 3200}
    assert min(phones.values()) >= 2


@pytest.mark.parametrize("gains", [camera.DAYLIGHT, (1.9, 1.0, 1.9), (2.4, 1.0, 1.5)])
def test_process_undoes_unprocess(gains: tuple) -> None:
    """Every 8-bit colour, the corners of the cube included, has camera colours in [0, 1]."""
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    colours[0, :8] = [[255 * (i >> c & 1) for c in range(3)] for i in range(8)]
    raw = camera.unprocess(colours / 255, gains)
    assert raw.min() > -1e-12
    assert raw.max() < 1 + 1e-12
    np.testing.assert_array_equal(camera.to_uint8(camera.process(raw * gains)), colours)


def test_develops_grey_by_the_srgb_curve() -> None:
    """IEC 61966-2-1: linear 0.5 is 187.5 of 255 (188), 0.2159 is 128, 0.001 is 12.92 x: 3."""
    for linear, level in ((0.5, 188), (0.21586, 128), (0.001, 3), (0, 0), (1, 255)):
        raw = camera.mosaic(np.full((8, 8, 3), linear) / camera.DAYLIGHT)
        np.testing.assert_array_equal(camera.develop(raw, camera.DAYLIGHT), grey(level, 8))


def test_mosaic_is_rggb() -> None:
    rgb = np.arange(3.0) * np.ones((5, 4, 1))
    np.testing.assert_array_equal(camera.mosaic(rgb)[:2, :2], [[0, 1], [1, 2]])
    np.testing.assert_array_equal(camera.mosaic(rgb)[4], [0, 1, 0, 1])


@pytest.mark.parametrize("size", [(8, 10), (7, 9), (5, 8)])
def test_demosaic_is_exact_for_flat_colours_and_grey_ramps(size: tuple) -> None:
    flat = np.broadcast_to([0.2, 0.5, 0.9], (*size, 3))
    np.testing.assert_allclose(camera.demosaic(camera.mosaic(flat)), flat, atol=1e-12)
    y, x = np.indices(size)
    ramp = np.repeat((0.1 + 0.02 * y + 0.03 * x)[..., None], 3, axis=2)
    inside = np.s_[2:-2, 2:-2]  # a ramp turns back at the mirrored edge
    restored = camera.demosaic(camera.mosaic(ramp))
    np.testing.assert_allclose(restored[inside], ramp[inside], atol=1e-12)


def test_demosaic_has_the_published_weights() -> None:
    """One lit red pixel: eighths of figure 2 of Malvar et al., found at its neighbours."""
    raw = np.zeros((13, 13))
    raw[6, 6] = 8
    r, g, b = np.moveaxis(camera.demosaic(raw), -1, 0)
    np.testing.assert_array_equal(r[6, 4:9], [0, 4, 8, 4, 0])
    np.testing.assert_array_equal([r[7, 7], r[5, 7], r[4, 6]], [2, 2, 0])
    np.testing.assert_array_equal(g[6, 4:9], [-1, 0, 4, 0, -1])
    np.testing.assert_array_equal(b[6, 4:9], [-1.5, 0, 6, 0, -1.5])
    np.testing.assert_array_equal(b, b.T)
    raw = np.zeros((13, 13))
    raw[6, 7] = 8  # a green pixel in a row of reds
    r, g, b = np.moveaxis(camera.demosaic(raw), -1, 0)
    np.testing.assert_array_equal(r[6, 5:10], [-1, 0, 5, 0, -1])
    np.testing.assert_array_equal(r[4:9, 7], [0.5, 0, 5, 0, 0.5])
    np.testing.assert_array_equal(b[6, 5:10], [0.5, 0, 5, 0, 0.5])
    np.testing.assert_array_equal(b[4:9, 7], [-1, 0, 5, 0, -1])
    np.testing.assert_array_equal([g[6, 7], g[6, 6], g[6, 8], g[5, 7], g[7, 7]], [8, 2, 2, 2, 2])


def test_the_clean_side_shows_the_photo() -> None:
    """A Bayer pattern samples each colour at every second pixel: a photo blurred by 1.5 pixels has
    little beyond that and must come back; the photo itself loses its finest detail alone."""
    photo = sample.sample_photos()["chelsea"]
    soft = gaussian_filter(photo, (1.5, 1.5, 0))
    clean, _ = camera.camera_pair(soft, camera.noise_level("GP", 100), np.random.default_rng(0))
    assert peak_signal_noise_ratio(soft, clean) > 40
    clean, _ = camera.camera_pair(photo, camera.noise_level("GP", 100), np.random.default_rng(0))
    assert clean.shape == photo.shape  # 300 x 451: odd
    assert clean.dtype == np.uint8
    assert peak_signal_noise_ratio(photo, clean) > 28


def test_developed_noise_is_correlated_and_raw_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    clean, noisy = camera.camera_pair(grey(120), camera.noise_level("S6", 800), rng)
    noise = noisy.astype(float) - clean
    # real photographs of the same phones: 0.38 to 0.47
    assert 0.35 < correlation(noise) < 0.5
    raw = camera.raw_noise(np.full((200, 200), 0.2), camera.noise_level("S6", 800), rng)
    white = np.repeat(raw[..., None], 3, 2)
    assert abs(correlation(white)) < 5 / math.sqrt(2 * 200**2)
    # far from the ends nothing clips: the curve's bend shifts the mean by a fraction of the noise
    assert abs(noise.mean()) < 0.1 * noise.std()


def test_random_levels_cover_the_stated_range() -> None:
    rng, n = np.random.default_rng(0), 4000
    beta1, beta2 = np.array([camera.random_noise_level(rng) for _ in range(n)]).T
    assert beta1.min() >= 1e-4
    assert beta1.max() <= 3e-2
    # log-uniform: the mean of n draws of U(a, b) is off by (b - a) / sqrt(12 n) (one sigma)
    a, b = math.log(1e-4), math.log(3e-2)
    assert np.log(beta1).mean() == pytest.approx((a + b) / 2, abs=5 * (b - a) / math.sqrt(12 * n))
    off_line = np.log(beta2) - (2.18 * np.log(beta1) + 1.20)
    assert off_line.mean() == pytest.approx(0, abs=5 * 0.26 / math.sqrt(n))
    assert off_line.std() == pytest.approx(0.26, rel=5 / math.sqrt(2 * n))


def test_noise_follows_the_signal() -> None:
    """In raw the standard deviation goes with sqrt(x); the curve's slope, about x^(-0.58), undoes
    more than that: dark tones are the noisier until they clip at black."""
    std = {}
    for level in (60, 120, 200):
        clean, noisy = camera.camera_pair(
            grey(level), camera.noise_level("S6", 400), np.random.default_rng(0)
        )
        std[level] = (noisy.astype(float) - clean).std()
    assert std[60] > std[120] > std[200]


@pytest.mark.parametrize("phone", ["GP", "S6", "N6", "G4"])  # the iPhone's barely depends on ISO
def test_noise_grows_with_iso(phone: str) -> None:
    std = []
    for iso in sorted(iso for name, iso in camera.NOISE_LEVEL if name == phone):
        clean, noisy = camera.camera_pair(
            grey(120, 64), camera.noise_level(phone, iso), np.random.default_rng(0)
        )
        std.append((noisy.astype(float) - clean).std())
    assert all(b > 1.2 * a for a, b in itertools.pairwise(std))


def test_pair_depends_on_the_generator_alone() -> None:
    photo = sample.sample_photos()["coffee"][:64, :64]
    first, again, other = (
        camera.camera_pair(photo, camera.noise_level("N6", 800), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], other[0])  # the clean side has no noise at all
    assert (first[1] != other[1]).any()


def test_unknown_settings_and_arrays_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="G4 at ISO 3200"):
        camera.camera_pair(grey(100, 8), camera.noise_level("G4", 3200), rng)
    with pytest.raises(ValueError, match="float64"):
        camera.camera_pair(np.zeros((8, 8, 3)), camera.noise_level("G4", 100), rng)


# ---- photographs and areas -----------------------------------------------------------------------


def test_photos_are_colour_and_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    photos = sample.sample_photos()
    assert len(photos) == 7
    for photo in photos.values():
        assert photo.dtype == np.uint8
        assert photo.shape[2] == 3
        assert min(photo.shape[:2]) >= 256
        assert np.abs(photo[..., 0].astype(int) - photo[..., 2]).mean() > 1


def test_areas_lie_inside_their_photos_and_do_not_overlap() -> None:
    photos = sample.sample_photos()
    used = {name: np.zeros(photo.shape[:2], int) for name, photo in photos.items()}
    tests = [*(area for area, _, _ in sample.TEST_CAMERA), *sample.TEST_PHOTOS]
    for area in (*sample.TRAINING, *tests):
        assert area.cut(photos).shape == (area.height, area.width, 3)
        used[area.photo][area.top :, area.left :][: area.height, : area.width] += 1
    assert all(count.max() == 1 for count in used.values())
    assert {(a.height, a.width) for a in tests} == {(256, 256)}


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.write_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files with small windows and few test crops, for what does not depend on size."""
    monkeypatch.setattr(sample, "SCENE_SIDE", 16)
    monkeypatch.setattr(sample, "TRAINING", sample.TRAINING[:3])
    monkeypatch.setattr(sample, "TEST_CAMERA", sample.TEST_CAMERA[:1])
    monkeypatch.setattr(sample, "TEST_PHOTOS", sample.TEST_PHOTOS[:1])


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_training_layout(written: Path) -> None:
    scenes = sorted((written / "train_images/sidd_sample/Data").iterdir())
    name = re.compile(r"\d{4}_\d{3}_(IP|GP|S6|N6|G4)_(\d{5})_\d{5}_\d{4}_[LNH]")
    matches = [name.fullmatch(scene.name) for scene in scenes]
    assert all(matches)
    assert {(m[1], int(m[2])) for m in matches} == set(camera.NOISE_LEVEL)
    for scene in scenes:
        number = scene.name[:4]
        files = {path.name: path for path in scene.iterdir()}
        assert set(files) == {f"{number}_GT_SRGB_010.PNG", f"{number}_NOISY_SRGB_010.PNG"}
        clean, noisy = (
            read_image(files[f"{number}_{kind}_SRGB_010.PNG"]) for kind in ("GT", "NOISY")
        )
        assert clean.shape == noisy.shape
        assert min(clean.shape[:2]) >= 128  # room for a patch of 96 and its crops
        noise = noisy.astype(float) - clean
        assert 3 < noise.std() < 45  # SIDD: 8 to 38 and, at its lowest ISO, less
        assert correlation(noise) > 0.2
    photos = sample.sample_photos()
    for area in sample.TRAINING:
        image = read_image(written / "train_images/photos" / f"{area.photo}.png")
        np.testing.assert_array_equal(image, area.cut(photos))


def test_test_layout(written: Path) -> None:
    folder = written / "test_images/sample_camera"
    clean, noisy = (list_images(folder / side) for side in ("groundtruth", "input"))
    assert [p.name for p in clean] == [p.name for p in noisy]
    assert len(clean) == 12
    photos = sample.sample_photos()
    for a, b, (area, _, _) in zip(clean, noisy, sample.TEST_CAMERA, strict=True):
        a, b = read_image(a), read_image(b)
        assert a.shape == b.shape == (256, 256, 3)
        assert correlation(b.astype(float) - a) > 0.2
        assert peak_signal_noise_ratio(area.cut(photos), a) > 25  # that very crop, developed
    singles = list_images(written / "test_images/sample_photos")
    assert len(singles) == len(sample.TEST_PHOTOS)
    for path, area in zip(singles, sample.TEST_PHOTOS, strict=True):
        np.testing.assert_array_equal(read_image(path), area.cut(photos))


def test_same_seed_same_bytes(small: None, tmp_path: Path) -> None:
    first, again, other = (
        contents(sample.write_sample(tmp_path / name, seed))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert set(first) == set(other)
    noisy = [name for name in first if "_NOISY_" in name or "/input/" in name]
    assert len(noisy) == 23
    assert all(first[name] != other[name] for name in noisy)


def test_a_complete_sample_is_kept_and_an_incomplete_one_written_anew(
    small: None, tmp_path: Path
) -> None:
    sample.write_sample(tmp_path)
    before = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    sample.write_sample(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    next((tmp_path / "test_images/sample_camera/input").iterdir()).unlink()
    sample.write_sample(tmp_path)
    assert contents(tmp_path) == before


def test_another_seed_or_version_replaces(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.write_sample(tmp_path, seed=0)
    first = contents(tmp_path)
    sample.write_sample(tmp_path, seed=1)
    assert contents(tmp_path) != first
    monkeypatch.setattr(sample, "VERSION", sample.VERSION + 1)
    sample.write_sample(tmp_path, seed=0)
    marker = json.loads((tmp_path / "train_images/photos/.sample.json").read_text())
    assert (marker["version"], marker["seed"]) == (sample.VERSION, 0)


def test_the_version_is_that_of_the_content(written: Path) -> None:
    """Raise VERSION with any change of these figures, which a folder of before would not have."""
    name = "01_astronaut_S6_00800.png"
    folder = written / "test_images/sample_camera"
    noise = read_image(folder / "input" / name).astype(float)
    noise -= read_image(folder / "groundtruth" / name)
    correlation = [
        np.corrcoef(x[:, 1:].ravel(), x[:, :-1].ravel())[0, 1] for x in noise.transpose(2, 0, 1)
    ]
    assert sample.VERSION == 2
    np.testing.assert_allclose(noise.std((0, 1)), [12.139, 13.513, 22.503], atol=0.01)
    np.testing.assert_allclose(correlation, [0.605, 0.291, 0.299], atol=0.01)


def test_an_interrupted_write_leaves_nothing_half(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(path: Path, image: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        write(path, image)

    write = sample.write_image
    monkeypatch.setattr(sample, "write_image", failing)
    with pytest.raises(KeyboardInterrupt):
        sample.write_sample(tmp_path)
    assert contents(tmp_path) == {}


def test_other_peoples_files_are_left_alone(small: None, tmp_path: Path) -> None:
    mine = tmp_path / "train_images/photos/holiday.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"photos: .*holiday\.jpg"):
        sample.write_sample(tmp_path)
    assert mine.read_bytes() == b"mine"
    assert list(mine.parent.iterdir()) == [mine]
    # also beside a sample that is about to be replaced
    other = tmp_path / "other"
    sample.write_sample(other)
    guest = other / "test_images/sample_camera/input/guest.png"
    guest.write_bytes(b"guest")
    with pytest.raises(UserError, match=r"guest\.png"):
        sample.write_sample(other, seed=1)
    assert guest.read_bytes() == b"guest"


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"sidd_sample: cannot be written"):
        sample.write_sample(tmp_path / "file")
