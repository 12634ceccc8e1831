"""denoise.py end to end. A denoiser whose last layer is zero is the identity: outputs are known."""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import denoise
from models import build_denoiser
from tests.helpers import read_png
from utils import folder_jobs
from utils.errors import UserError

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
    # 257 maps full range onto full range; +-128 round to the same 8-bit value.
    deep = (rgb.astype(np.int64) * 257 + 100).clip(0, 65535).astype(np.uint16)
    cv2.imwrite(str(folder / "deep.png"), deep[..., ::-1])
    few = Image.fromarray(rgb).quantize(16)
    few.save(folder / "palette.png")
    save_denoiser(tmp_path / "ckpts" / "unet_g.pt", "unet")
    assert run(folder) == 0
    out = tmp_path / "out"
    assert np.array_equal(read_png(out / "grey.png"), np.repeat(grey, 3, axis=2))
    assert np.array_equal(read_png(out / "alpha.png"), rgba[..., :3])
    assert np.array_equal(read_png(out / "deep.png"), rgb)
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


def test_skipped_files_are_named_and_the_rest_is_done(photos, run, tmp_path, capsys, monkeypatch):
    save_denoiser(tmp_path / "ckpts" / "ridnet_g.pt", "ridnet")
    whole = (photos / "24 wide" / "16.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    # At width 4 ridnet takes 4 bytes x (7 x 4 + 24) a pixel: 117 kB for 33x17, 80 kB for 16x24.
    monkeypatch.setattr(folder_jobs, "free_memory", lambda device: 1e5)
    assert run(photos) == 1
    said = capsys.readouterr()
    assert "3 images written" in said.out
    assert "2 skipped" in said.out
    assert f"{photos / 'cut.png'}: damaged" in said.err
    assert "33.png: 17x33 pixels need about" in said.err
    assert not (tmp_path / "out" / "17 wide").exists()


def test_out_of_gpu_memory_skips_the_image(photos, run, tmp_path, capsys, monkeypatch):
    def narrow(path: Path, device: torch.device) -> torch.nn.Module:
        denoiser = build_denoiser("dncnn", width=4).eval()
        forward = denoiser.forward

        def guarded(noisy: torch.Tensor) -> torch.Tensor:
            if noisy.shape[-1] == 17:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(noisy)

        denoiser.forward = guarded
        return denoiser

    save_denoiser(tmp_path / "ckpts" / "dncnn_g.pt", "dncnn")
    monkeypatch.setattr(denoise, "denoiser_from_checkpoint", narrow)
    assert run(photos) == 1
    said = capsys.readouterr()
    assert "33.png: out of GPU memory" in said.err
    assert "3 images written" in said.out


def test_free_memory_is_what_this_machine_could_have(device):
    free = folder_jobs.free_memory(device)
    assert free > 1e7
    if device.type == "cuda":
        assert free <= torch.cuda.get_device_properties(device).total_memory


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
