"""denoise.py end to end. A denoiser whose last layer is zero is the identity: outputs are known."""

import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.metrics
import torch
from PIL import Image

import denoise
import models.denoisers
from models import build_denoiser
from tests.helpers import read_png
from utils.errors import UserError
from utils.images import integer_to_float
from utils.metrics import ssim

LAST = {"ridnet": "tail", "dncnn": "body.56", "unet": "tail"}
SIZES = [(1, 1), (5, 3), (33, 17), (16, 24)]


def save_denoiser(path: Path, name: str, identity: bool = True) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build_denoiser(name, width=4).state_dict()
    if identity:
        for key in list(state):
            if key.startswith(LAST[name] + "."):
                state[key] = torch.zeros_like(state[key])
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for height, width in SIZES:
        path = folder / f"{width} wide" / f"{height}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels(height, width)).save(path)
    return folder


@pytest.fixture
def run(tmp_path: Path):
    """run(input, *flags) -> exit status; writes to out, with the weights in ckpts, on the CPU."""

    def run(source: Path, *flags: str) -> int:
        return denoise.main(
            [
                *("--input", str(source), "--output", str(tmp_path / "out")),
                *("--checkpoint", str(tmp_path / "ckpts"), "--gpu", "cpu", *flags),
            ]
        )

    return run


@pytest.mark.parametrize("name", ["ridnet", "dncnn", "unet"])
def test_folder_through_the_identity(name, photos, run, tmp_path, device, capsys):
    save_denoiser(tmp_path / "ckpts" / f"{name}_g.pt", name)
    assert run(photos, "--gpu", "cpu" if device.type == "cpu" else "0") == 0
    for height, width in SIZES:
        found = read_png(tmp_path / "out" / f"{width} wide" / f"{height}.png")
        assert np.array_equal(found, pixels(height, width))
    assert "4 images written" in capsys.readouterr().out


def test_result_is_the_network_clipped(photos, run, tmp_path):
    save_denoiser(tmp_path / "ckpts" / "unet_g.pt", "unet", identity=False)
    net = build_denoiser("unet", width=4).eval()
    net.load_state_dict(torch.load(tmp_path / "ckpts" / "unet_g.pt", weights_only=True))
    assert run(photos / "17 wide" / "33.png") == 0
    noisy = pixels(33, 17)
    with torch.no_grad():
        denoised = net(torch.from_numpy(noisy).permute(2, 0, 1)[None] / 255)
    expected = np.round(denoised[0].permute(1, 2, 0).numpy().clip(0, 1) * 255)
    found = read_png(tmp_path / "out" / "33.png")
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, noisy)


def test_grey_alpha_palette_and_16_bit(run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    grey, rgba, rgb = pixels(9, 7, 1), pixels(9, 8, 4), pixels(9, 10)
    Image.fromarray(grey.squeeze(2)).save(folder / "grey.png")
    Image.fromarray(rgba).save(folder / "alpha.png")
    deep = (rgb.astype(np.int64) * 257 + 100).clip(0, 65535).astype(np.uint16)
    cv2.imwrite(str(folder / "deep.png"), deep[..., ::-1])
    few = Image.fromarray(rgb).quantize(16)
    few.save(folder / "palette.png")
    save_denoiser(tmp_path / "ckpts" / "unet_g.pt", "unet")
    assert run(folder) == 0
    out = tmp_path / "out"
    assert np.array_equal(read_png(out / "grey.png"), np.repeat(grey, 3, axis=2))
    assert np.array_equal(read_png(out / "alpha.png"), rgba[..., :3])
    found = cv2.imread(str(out / "deep.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert found.dtype == np.uint16
    assert np.array_equal(found, deep)
    assert np.array_equal(read_png(out / "palette.png"), np.asarray(few.convert("RGB")))


def test_checkpoint_is_a_file_or_a_folder_with_one(photos, run, tmp_path):
    ckpts = tmp_path / "ckpts"
    ckpts.mkdir()
    with pytest.raises(UserError, match="holds no denoiser"):
        run(photos)
    save_denoiser(ckpts / "ridnet_g.pt", "ridnet")
    torch.save({}, ckpts / "state.pt")  # other files do not matter
    assert run(photos) == 0
    save_denoiser(ckpts / "unet_g.pt", "unet")
    with pytest.raises(UserError, match=r"holds ridnet_g\.pt, unet_g\.pt; name the file"):
        run(photos)
    assert run(photos, "--checkpoint", str(ckpts / "unet_g.pt")) == 0
    with pytest.raises(UserError, match="no such checkpoint"):
        run(photos, "--checkpoint", str(ckpts / "dncnn_g.pt"))
    with pytest.raises(UserError, match="not the weights of ridnet, dncnn or unet"):
        run(photos, "--checkpoint", str(ckpts / "state.pt"))


def test_skipped_files_are_named_and_the_rest_is_done(photos, run, tmp_path, capsys):
    save_denoiser(tmp_path / "ckpts" / "ridnet_g.pt", "ridnet")
    whole = (photos / "24 wide" / "16.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert run(photos) == 1
    said = capsys.readouterr()
    assert "4 images written" in said.out
    assert "1 skipped" in said.out
    assert f"{photos / 'cut.png'}: damaged" in said.err


def test_out_of_memory_for_the_smallest_tile_skips_the_image(
    photos, run, tmp_path, capsys, monkeypatch
):
    def narrow(path: Path, device: torch.device) -> torch.nn.Module:
        denoiser = build_denoiser("dncnn", width=4).eval()

        def guard(network: torch.nn.Module, noisy: tuple[torch.Tensor]) -> None:
            if noisy[0].shape[-1] == 17:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        denoiser.register_forward_pre_hook(guard)
        return denoiser

    save_denoiser(tmp_path / "ckpts" / "dncnn_g.pt", "dncnn")
    monkeypatch.setattr(models.denoisers, "denoiser_from_checkpoint", narrow)
    assert run(photos) == 1
    said = capsys.readouterr()
    assert "33.png: out of memory with tiles of" in said.err
    assert "3 images written" in said.out


def test_strength_blends_with_the_input(photos, run, tmp_path):
    save_denoiser(tmp_path / "ckpts" / "unet_g.pt", "unet", identity=False)
    source, results = photos / "17 wide" / "33.png", []
    for strength in ("0", "0.5", "1"):
        assert run(source, "--overwrite", "--strength", strength) == 0
        results.append(read_png(tmp_path / "out" / "33.png").astype(float))
    assert np.array_equal(results[0], pixels(33, 17))
    inside = (results[2] > 0) & (results[2] < 255)  # not clipped
    assert np.abs(results[1] - (results[0] + results[2]) / 2)[inside].max() <= 1
    assert np.abs(results[0] - results[2]).max() > 3
    for bad in ("-0.1", "1.1", "nan"):
        with pytest.raises(UserError, match=f"--strength {bad}: expected 0 to 1"):
            run(source, "--strength", bad)


def test_tiles_do_not_show(photos, run, tmp_path):
    save_denoiser(tmp_path / "ckpts" / "unet_g.pt", "unet", identity=False)
    Image.fromarray(pixels(97, 83)).save(photos / "x.png")
    run(photos / "x.png")
    whole = read_png(tmp_path / "out" / "x.png").astype(int)
    run(photos / "x.png", "--overwrite", "--tile", "32")
    assert np.abs(read_png(tmp_path / "out" / "x.png") - whole).max() <= 1
    with pytest.raises(UserError, match="--tile 8: expected 32 or more"):
        run(photos, "--tile", "8")


def test_scores_against_the_truth(photos, run, tmp_path, capsys):
    """By scikit-image, and by the identity: the same before and after."""
    save_denoiser(tmp_path / "ckpts" / "unet_g.pt", "unet")
    Image.fromarray(pixels(700, 800) // 2 + 64).save(photos / "17 wide" / "large.png")
    truth = tmp_path / "truth"
    for name, size in (("17 wide/33", (33, 17)), ("17 wide/large", (700, 800))):
        (truth / name).parent.mkdir(parents=True, exist_ok=True)
        clean = pixels(*size) // 2 + 64 if size[0] == 700 else pixels(*size)
        noise = np.random.default_rng(1).normal(0, 9, clean.shape)
        Image.fromarray((clean + noise).clip(0, 255).astype(np.uint8)).save(truth / f"{name}.bmp")
    Image.fromarray(pixels(9, 9)).save(truth / "24 wide.png")
    assert run(photos, "--truth", str(truth)) == 1
    said = capsys.readouterr()
    assert said.err.count("written, but it has no partner in --truth") == 3
    found = re.findall(r"(\w+)\.png: PSNR (.*) -> (.*) dB, SSIM (.*) -> (.*)", said.out)
    assert [name for name, *_ in found] == ["33", "large"]
    for name, before, after, ssim_before, ssim_after in found:
        assert (before, ssim_before) == (after, ssim_after)
        a = np.asarray(Image.open(truth / "17 wide" / f"{name}.bmp"))
        b = np.asarray(Image.open(photos / "17 wide" / f"{name}.png"))
        psnr = skimage.metrics.peak_signal_noise_ratio(a, b)
        assert float(before) == pytest.approx(psnr, abs=0.006)
        x, y = (integer_to_float(image)[None] for image in (a, b))
        assert float(ssim_before) == pytest.approx(ssim(x, y).item(), abs=2e-4)
    assert "mean of 2: PSNR" in said.out
    assert "noisy | denoised | clean" in (tmp_path / "out" / "comparison.html").read_text()
    assert (
        run(photos / "1 wide" / "1.png", "--overwrite", "--truth", str(truth / "24 wide.png")) == 1
    )
    assert "24 wide.png has another size" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"none: no such image or folder; check --truth"):
        run(photos, "--truth", str(tmp_path / "none"))


def test_script_exit_status(photos, tmp_path, monkeypatch, capsys):
    def status(*flags: str) -> object:
        monkeypatch.setattr("sys.argv", ["denoise.py", "--gpu", "cpu", *flags])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(denoise.__file__, run_name="__main__")
        return stop.value.code

    save_denoiser(tmp_path / "ckpts" / "unet_g.pt", "unet")
    flags = ["--input", str(photos), "--checkpoint", str(tmp_path / "ckpts"), "--output"]
    assert status(*flags, str(tmp_path / "out")) == 0
    (photos / "bad.png").write_bytes(b"\x89PNG")
    assert status(*flags, str(tmp_path / "out")) == 1
    assert status(*flags, str(photos)) == 2
    assert capsys.readouterr().err.endswith("never overwritten; choose another\n")
