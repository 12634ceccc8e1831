"""Folders and command lines that cannot work, each with what must be said: the second part of the
table of test_bad_input.py."""

import functools
import io
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import denoise
import supp_tbl
import train_denoiser as REAL
import train_denoiser_synthetic as SYNTHETIC
import train_noiseTransfer as NT
import transfer_noise
from data import camera_pairs
from data.doctor import __main__ as doctor
from data.sidd import parse_scene
from data.store import ImageStore
from data.test_sets import find_test_sets
from data.training_data import find_training_data
from models import NoiseEncoder, NoiseGenerator, build_denoiser
from tests.bad_files import (
    BLOCKS,
    BOMB,
    FETCH,
    NO_FILE,
    Case,
    encoded,
    named_pipe,
    pixels,
    png_of_size,
)
from tests.test_sidd import SCENES, save_mat, write_scene
from utils.images import write_image
from utils.resume import Checkpoints, RunLock, settings_of

# ------------------------------------------------------------------------------------ data folders


def pairs(folder: Path, n: int = 3, clean: str = "clean", noisy: str = "noisy") -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        image = pixels(seed=i)
        noise = rng.normal(0, 9, image.shape)
        write_image(folder / clean / f"{i}.png", image)
        write_image(
            folder / noisy / f"{i}.png", (image + noise).round().clip(0, 255).astype(np.uint8)
        )
    return folder


def changed(folder: Path, name: str, content: bytes | np.ndarray | None) -> Path:
    """`folder` with one file removed, replaced or added."""
    path = folder / name
    if content is None:
        path.unlink()
    elif isinstance(content, np.ndarray):
        write_image(path, content)
    else:
        path.write_bytes(content)
    return folder


def scene(folder: Path) -> Path:
    write_scene(folder / SCENES[0])
    return folder


def store_with(folder: Path, index: str) -> ImageStore:
    (folder / "index.json").write_text(index)
    (folder / "images.u8").write_bytes(bytes(12))
    return ImageStore(folder)


STORE = "not a complete image store .*; delete this folder and run again"
FOLDERS = [
    Case("no training images", find_training_data, "no training images; put SIDD-Medium there"),
    Case("pair without its clean side",
         lambda f: find_training_data(changed(pairs(f), "clean/1.png", None)),
         r"noisy/1\.png: its partner .*clean/1\.\* is missing; add it or remove this"),
    Case("pair of two sizes",
         lambda f: find_training_data(changed(pairs(f), "noisy/1.png", pixels(40, 40))),
         r"noisy/1\.png: 40x40 pixels, but its clean partner .*1\.png has 48x40; .*fetch both"),
    Case("pair with an empty file",
         lambda f: find_training_data(changed(pairs(f), "noisy/1.png", b"")),
         r"1\.png: an empty file"),
    Case("two files of one stem",
         lambda f: find_training_data(changed(pairs(f), "clean/1.bmp", pixels())), "the same stem"),
    Case("two clean folders",
         lambda f: find_training_data(pairs(pairs(f), clean="gt")),
         "expected one clean folder .*found clean, gt, noisy; rename or remove"),
    Case("SIDD image without partner",
         lambda f: find_training_data(changed(scene(f), f"{SCENES[0]}/0001_GT_SRGB_010.PNG", None)),
         r"NOISY_SRGB_010\.PNG: its partner 0001_GT_SRGB_010\.PNG is missing; unpack"),
    Case("SIDD scene of another name", lambda f: parse_scene("0001_001_S6_100"),
         "not the name of a SIDD scene folder, such as .*restore the published name"),
    Case("one .mat of two",
         lambda f: (save_mat(f / "siddplus_valid_gt_srgb.mat", "x", BLOCKS, "v5"),
                    find_test_sets(f)),
         r"its partner siddplus_valid_noisy_srgb\.mat is missing; put it beside it"),
    Case("two test sets of one name",
         lambda f: (pairs(f / "a_b"), pairs(f / "a" / "b"), find_test_sets(f)),
         "holds two test sets called a_b.*; keep one, or rename"),
    Case("store: not JSON", lambda f: store_with(f, "{"), STORE),
    Case("store: a list", lambda f: store_with(f, "[]"), STORE),
    Case("store: negative sizes", lambda f: store_with(f, '{"files": ["a"], "sizes": [[-2, -2]]}'),
         STORE),
    Case("store: sizes beyond the file",
         lambda f: store_with(f, '{"files": ["a"], "sizes": [[4, 4]]}'),
         r"images\.u8: 12 bytes, expected 48; delete this folder and run again"),
    Case("store: cache is a file",
         lambda f: (changed(f, "cache", b""), changed(f, "a.png", pixels()),
                    ImageStore.open([f / "a.png"], f / "cache")),
         "cache.*cannot be written .*; choose another cache folder"),
]  # fmt: skip


# ----------------------------------------------------------------------------------------- scripts


@functools.cache
def weights(network: Callable[..., nn.Module], *how: str | int) -> bytes:
    buffer = io.BytesIO()
    torch.save(network(*how).state_dict(), buffer)
    return buffer.getvalue()


def networks(folder: Path, encoder_dim: int = 8) -> Path:
    """NT/ and sidd/ with tiny networks."""
    for name, content in (
        ("NT/encoder_k.pt", weights(NoiseEncoder, 4, encoder_dim)),
        ("NT/VUNet.pt", weights(NoiseGenerator, 4, 8)),
        ("sidd/ridnet_g.pt", weights(build_denoiser, "ridnet", 4)),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def training(script: types.ModuleType, folder: Path, *flags: str) -> None:
    """A tiny run on the CPU; it is to fail before its first step."""
    own = ["--embed-dim", "8"] if script is NT else ["--nt", str(folder / "NT"), "--border", "2"]
    script.main([
        *("--debug", "--gpu", "cpu", "--batch", "2", "--patch", "16", "--max-minutes", "0", *own),
        *("--train-images", str(folder / "train"), "--test-images", str(folder / "test")),
        *("--cache", str(folder / "cache"), "--run-dir", str(folder / "run"), *flags),
    ])  # fmt: skip


def train_on(script: types.ModuleType, folder: Path, *flags: str) -> None:
    """With pairs, photographs and a generator in place."""
    networks(folder)
    pairs(folder / "train" / "pairs")
    write_image(folder / "train" / "photos" / "1.png", pixels(seed=9))
    training(script, folder, *flags)


def started(folder: Path, *flags: str) -> None:
    """Again, with other settings than the run that is there."""
    paths = {"nt": folder / "NT", "train_images": folder / "train"}
    settings = settings_of(REAL.Config(width=4, batch=2, patch=16, border=2, **paths))
    Checkpoints(folder / "run").save({"step": 0, "settings": settings})
    training(REAL, folder, *flags)


def transfer(folder: Path, *flags: str, reference: Path | None = None) -> int:
    networks(folder)
    write_image(folder / "in" / "a.png", pixels())
    write_image(folder / "reference.png", pixels(seed=1))
    return transfer_noise.main([
        *("--reference", str(reference or folder / "reference.png"), "--input", str(folder / "in")),
        *("--output", str(folder / "out"), "--nt", str(folder / "NT"), "--gpu", "cpu"),
        *flags,
    ])  # fmt: skip


def denoised(folder: Path, *flags: str) -> int:
    networks(folder)
    write_image(folder / "in" / "a.png", pixels())
    return denoise.main([
        *("--input", str(folder / "in"), "--output", str(folder / "out"), "--gpu", "cpu"),
        *("--checkpoint", str(folder / "sidd"), *flags),
    ])  # fmt: skip


def tables(folder: Path, *flags: str) -> None:
    chosen = () if "--tables" in flags else ("--tables", "noise", "denoising")
    supp_tbl.main([
        *("--gpu", "cpu", "--nt", str(folder / "NT"), "--sidd", str(folder / "sidd")),
        *("--test-images", str(folder / "test"), "--out", str(folder / "out")),
        *("--no-report", *chosen, *flags),
    ])  # fmt: skip


def simulated(folder: Path, *flags: str) -> None:
    write_image(folder / "photos" / "a.png", pixels(300, 300))
    camera_pairs.main(["--photos", str(folder / "photos"), "--output", str(folder / "o"), *flags])


def examined(folder: Path, *flags: str) -> int:
    return doctor.main(["--pairs", str(folder), *flags])


def while_locked(folder: Path) -> None:
    lock = RunLock(folder / "run")
    try:
        train_on(REAL, folder)
    finally:
        lock.release()


def script_cases() -> Iterator[Case]:
    both = [("real", REAL), ("synthetic", SYNTHETIC)]
    for name, script in [("generator", NT), *both]:
        argv = lambda *flags, s=script: lambda f: training(s, f, *flags)  # noqa: E731
        on = lambda *flags, s=script: lambda f: train_on(s, f, *flags)  # noqa: E731
        for what, call, message in [
            ("--gpu 99", argv("--gpu", "99"), "--gpu 99: no GPU 99, .*; name another, or cpu"),
            ("--gpu x", argv("--gpu", "x"), "--gpu x: expected device numbers such as 0 or 0,1"),
            ("--gpu 0,0", argv("--gpu", "0,0"), "--gpu 0,0: expected device numbers"),
            ("unknown flag", argv("--no-such-flag"), "[Uu]nrecognized.*--no-such-flag"),
            ("unknown preset", argv("--preset", "huge"), "--preset.*paper.*lite"),
            ("text for a number", argv("--epochs", "many"), "--epochs.*many"),
            ("--batch 0", argv("--batch", "0"), "--batch 0.*1"),
            ("--batch -4", argv("--batch", "-4"), "--batch -4.*1"),
            ("--width 0", argv("--width", "0"), "--width 0: expected 1 or more"),
            ("--epochs 0", argv("--epochs", "0"), "--epochs 0: expected 1 or more"),
            ("--steps-per-epoch -1", argv("--steps-per-epoch", "-1"),
             "--steps-per-epoch -1: expected 1 or more"),
            ("--log-every 0", argv("--log-every", "0"), "--log-every 0: expected 1 or more"),
            ("--keep 0", argv("--keep", "0"), "--keep 0: expected 1 or more"),
            ("--val-limit 0", argv("--val-limit", "0"), "--val-limit 0: expected 1 or more"),
            ("--seed -1", argv("--seed", "-1"), "--seed -1: expected 0 or more"),
            ("--lr nan", argv("--lr", "nan"), "--lr nan: expected a number above 0"),
            ("--ema 2", argv("--ema", "2"), r"--ema 2.0: expected 0 \(none\) to less than 1"),
            ("--patch 8", argv("--patch", "8"), "--patch 8: at least 16"),
            ("batch that the parts do not divide", on("--grad-accum", "3"),
             "--grad-accum 3: must divide the 2 samples"),
            ("images smaller than the patch", on("--patch", "64"),
             "48x40 pixels, smaller than the 64x64 patch; remove it or train on smaller"),
        ]:  # fmt: skip
            yield Case(f"{name}: {what}", call, message)
    for name, script in both:
        yield Case(f"{name}: no weights of the generator",
                   lambda f, s=script: training(s, f),
                   r"NT/encoder_k\.pt: no such checkpoint; train one first")  # fmt: skip
        yield Case(
            f"{name}: generator of two runs",
            lambda f, s=script: (networks(f, encoder_dim=12), training(s, f)),
            r"NT: encoder_k\.pt embeds into 12 dimensions, VUNet\.pt expects 8; take both",
        )
        yield Case(f"{name}: patch within its border",
                   lambda f, s=script: training(s, f, "--patch", "20", "--border", "10"),
                   "--patch 20: at least 21, border included")  # fmt: skip
        yield Case(f"{name}: reference smaller than the patch",
                   lambda f, s=script: training(s, f, "--patch", "20", "--embedded-size", "16"),
                   "--embedded-size 16: 0, or at least --patch 20")  # fmt: skip


def empty_train(folder: Path) -> None:
    (networks(folder) / "train").mkdir()
    training(REAL, folder)


SCRIPTS = [
    *script_cases(),
    Case("generator: --patch 30", lambda f: training(NT, f, "--patch", "30"),
         "--patch 30: at least 16, divisible by 4"),
    Case("generator: batch larger than the queue", lambda f: training(NT, f, "--batch", "17"),
         "--batch 17: at most --queue-size 16"),
    Case("generator: --embedded-sizes 16 32",
         lambda f: training(NT, f, "--patch", "32", "--embedded-sizes", "16", "32"),
         "--embedded-sizes 16 32: at least --patch 32, divisible by 4"),
    Case("generator: three shares at least of noise models",
         lambda f: training(NT, f, "--noise-models", "1", "2"),
         r"--noise-models 1\.0 2\.0: expected three or four shares"),
    Case("generator: --p-correlated 2", lambda f: training(NT, f, "--p-correlated", "2"),
         r"--p-correlated 2\.0: expected a share from 0 to 1"),
    Case("generator: nothing trains it",
         lambda f: training(NT, f, "--preset", "lite", *("--w-band", "0", "--w-shape", "0"),
                            *("--w-local-variance", "0", "--w-local-mean", "0"),
                            *("--w-autocorrelation", "0")),
         "every --w-... of the generator is 0"),
    Case("generator: a frozen encoder that discriminates",
         lambda f: training(NT, f, "--freeze-encoder", "--encoder-steps", "2"),
         "--freeze-encoder: the discriminator is the encoder"),
    Case("generator: a frozen encoder that nothing trains",
         lambda f: training(NT, f, "--preset", "lite", "--encoder-steps", "0"),
         "--freeze-encoder: nothing would train it"),
    Case("generator: --reference-patch 8", lambda f: training(NT, f, "--reference-patch", "8"),
         "--reference-patch 8: 0, or at least 16"),
    Case("generator: --embed-dim 0", lambda f: training(NT, f, "--embed-dim", "0"),
         "--embed-dim 0: expected 1 or more"),
    Case("generator: two stages", lambda f: training(NT, f, "--encoder-depths", "2", "3"),
         "--encoder-depths 2 3: expected three"),
    Case("generator: --temperature 0", lambda f: training(NT, f, "--temperature", "0"),
         "--temperature 0.0: expected a number above 0"),
    Case("generator: unknown ablation", lambda f: training(NT, f, "--ablation", "no-clue"),
         "--ablation no-clue: expected one of none, no-contrastive"),
    Case("real: no images", empty_train, r"train: no training images; put SIDD-Medium"),
    Case("real: photographs alone",
         lambda f: (changed(networks(f) / "train", "1.png", pixels()), training(REAL, f)),
         "train: no noisy/clean pairs; give their folder with --pairs"),
    Case("synthetic: pairs alone",
         lambda f: (pairs(networks(f) / "train"), training(SYNTHETIC, f)),
         "train: no photographs; give their folder with --photos"),
    Case("real: damaged image",
         lambda f: (pairs(f / "train", n=4), networks(f),
                    changed(f / "train", "noisy/3.png", bytes(encoded(".png")[:-40])),
                    training(REAL, f)), r"noisy/3\.png: damaged.*fetch"),
    Case("real: pairs that are none",
         lambda f: (changed(networks(f) / "photos", "1.png", pixels()),
                    training(REAL, f, "--pairs", str(f / "photos"))),
         "photos: no noisy/clean pairs; expected SIDD scene folders, or clean/ and noisy/"),
    Case("real: resumed with another width", lambda f: started(f, "--width", "6"),
         r"--width 6: the run in .*run has 4; leave the flag out, or choose another --run-dir"),
    Case("real: resumed with another denoiser", lambda f: started(f, "--denoiser", "unet"),
         r"--denoiser unet: the run in .*run has ridnet; leave the flag out"),
    Case("real: resumed with another seed", lambda f: started(f, "--seed", "4"),
         r"--seed 4: the run in .*run has 0; leave the flag out"),
    Case("real: run folder is a file", lambda f: (changed(f, "run", b""), train_on(REAL, f)),
         "run: no folder to write a run into .*; choose another --run-dir"),
    Case("real: run folder in use", while_locked,
         r"run: process \d+ on .* is training in this folder; wait for it, or choose another"),

    Case("transfer: reference too small",
         lambda f: (write_image(f / "small.png", pixels(40, 15)),
                    transfer(f, reference=f / "small.png")),
         r"small\.png: 15x40 pixels, expected at least 16 a side; give a larger piece"),
    Case("transfer: damaged reference",
         lambda f: (changed(f, "bad.png", b"text"), transfer(f, reference=f / "bad.png")),
         rf"bad\.png: {FETCH}"),
    Case("transfer: a pipe as reference",
         lambda f: transfer(f, reference=named_pipe(f / "p.png")), rf"p\.png: {NO_FILE}"),
    Case("transfer: output is the input", lambda f: transfer(f, "--output", str(f / "in")),
         "in: holds the input, which is never overwritten; choose another"),
    Case("transfer: output is a file",
         lambda f: (changed(f, "file", b""), transfer(f, "--output", str(f / "file"))),
         "file: looks like a file; --output is the folder to write into"),
    Case("transfer: no input", lambda f: transfer(f, "--input", str(f / "none")),
         "none: no such image or folder; check --input"),
    Case("transfer: --copies 0", lambda f: transfer(f, "--copies", "0"),
         "--copies 0 --seed 0: expected at least 1 and at least 0"),
    Case("transfer: --strength 3", lambda f: transfer(f, "--strength", "3"),
         "--strength 3.0: expected 0 to 2; for more, take a reference with more noise"),
    Case("transfer: --quality 0", lambda f: transfer(f, "--quality", "0"),
         "--quality 0: expected 1 to 100"),
    Case("transfer: --tile 8", lambda f: transfer(f, "--tile", "8"), "--tile 8: expected 32"),
    Case("transfer: no weights", lambda f: transfer(f, "--nt", str(f / "none")),
         r"none/encoder_k\.pt: no such checkpoint"),
    Case("transfer: a denoiser's folder",
         lambda f: (networks(f), (f / "sidd/ridnet_g.pt").rename(f / "sidd/encoder_k.pt"),
                    transfer(f, "--nt", str(f / "sidd"))),
         r"encoder_k\.pt: not the weights of a NoiseEncoder"),
    Case("transfer: missing flags", lambda f: transfer_noise.main([]), "--reference"),
    Case("transfer: one damaged of two",
         lambda f: (write_image(f / "in" / "b.png", pixels()), os.truncate(f / "in/b.png", 99),
                    transfer(f))[-1], r"1 skipped.*skipped: .*in/b\.png: damaged.*; fetch"),
    Case("transfer: output cannot be made",
         lambda f: (changed(f, "file", b""), transfer(f, "--output", str(f / "file" / "out")))[-1],
         r"1 skipped.*file/out/a\.png: cannot be written .*; choose another output folder"),

    Case("denoise: no weights", lambda f: denoised(f, "--checkpoint", str(f / "none.pt")),
         r"none\.pt: no such checkpoint"),
    Case("denoise: folder without weights", lambda f: denoised(f, "--checkpoint", str(f / "in")),
         r"in: holds no denoiser \(\*_g\.pt\); train one, or name another --checkpoint"),
    Case("denoise: the generator's weights",
         lambda f: denoised(f, "--checkpoint", str(f / "NT/VUNet.pt")),
         r"VUNet\.pt: not the weights of ridnet, dncnn or unet"),
    Case("denoise: folder without images",
         lambda f: ((f / "empty").mkdir(), denoised(f, "--input", str(f / "empty"))),
         "empty: holds no images; put images"),
    Case("denoise: image of 3.6 gigapixels",
         lambda f: (changed(f, "b.png", png_of_size(60000, 60000)),
                    denoised(f, "--input", str(f / "b.png")))[-1], r"skipped: .*b\.png" + BOMB),

    Case("tables: a generator's folder without weights", lambda f: tables(f),
         r"--nt .*NT: no .*NT/VUNet\.pt; train it .*, or leave out the noise, cross_scene and "
         r"known tables"),
    Case("tables: a denoiser's folder without weights",
         lambda f: tables(f, "--tables", "denoising"),
         r"--sidd .*sidd: no .*ridnet_g\.pt; train it .*, or leave out the denoising table"),
    Case("tables: no such test images", lambda f: (networks(f), tables(f)),
         "test: no such folder; check --test-images, or leave it out for the sample"),
    Case("tables: --draws 0", lambda f: tables(f, "--draws", "0"), "--draws 0: expected 1 or more"),
    Case("tables: nothing to measure",
         lambda f: (networks(f), changed(f / "test", "a.png", pixels()),
                    tables(f, "--tables", "denoising")),
         "test: holds nothing for these tables; .*denoising need real pairs"),
    Case("tables: damaged weights",
         lambda f: (networks(f), os.truncate(f / "sidd/ridnet_g.pt", 999), tables(f)),
         r"ridnet_g\.pt: damaged checkpoint .*; download or train it again"),
    Case("tables: test image without partner",
         lambda f: (networks(f), changed(pairs(f / "test"), "noisy/2.png", None), tables(f)),
         r"clean/2\.png: its partner .*noisy/2\.\* is missing; add it or remove this"),
    Case("tables: --limit 0", lambda f: tables(f, "--limit", "0"), "--limit 0: expected 1 or more"),
    Case("tables: unknown table", lambda f: tables(f, "--tables", "loss"), "--tables.*noise"),

    Case("camera pairs: output exists",
         lambda f: ((f / "o").mkdir(), simulated(f)), "o: exists; choose a new folder"),
    Case("camera pairs: small photos", lambda f: (
        write_image(f / "photos/a.png", pixels(300, 100)),
        camera_pairs.main(["--photos", str(f / "photos"), "--output", str(f / "o")])),
         r"a\.png: 100x300 pixels, too small to halve; remove it"),
    Case("camera pairs: --scenes 0", lambda f: simulated(f, "--scenes", "0"),
         "--scenes 0 --side 384: from 1 and 64"),
    Case("camera pairs: random levels as SIDD",
         lambda f: simulated(f, "--levels", "random", "--layout", "sidd"),
         "with other --levels use --layout paired"),

    Case("doctor: no such folder", lambda f: examined(f / "none"), "none: no such folder; check"),
    Case("doctor: truncated image",
         lambda f: examined(changed(pairs(f), "noisy/1.png", bytes(encoded(".png")[:-40]))),
         r"error: .*noisy/1\.png: damaged.*; fetch this file again"),
    Case("doctor: header of 3.6 gigapixels",
         lambda f: examined(changed(pairs(f), "noisy/1.png", png_of_size(60000, 60000))),
         r"error: .*noisy/1\.png" + BOMB),
    Case("doctor: two sizes",
         lambda f: examined(changed(pairs(f), "noisy/1.png", pixels(32, 32)), "--quick"),
         r"error: .*noisy/1\.png: 32x32 pixels, but its clean partner .*1\.png has 48x40; fetch"),
    Case("doctor: missing partner",
         lambda f: examined(changed(pairs(f), "clean/1.png", None)), r"error: .*noisy/1\.png"),
    Case("doctor: a pipe", lambda f: (named_pipe(pairs(f) / "noisy" / "9.png"),
                                      changed(f, "noisy/2.png", b""), examined(f))[-1],
         r"error: .*noisy/2\.png: .*empty"),
    Case("doctor: identical sides",
         lambda f: examined(changed(pairs(f), "noisy/1.png", pixels(seed=1))),
         r"error: .*noisy/1\.png: the same pixels as its clean partner"),
    Case("doctor: findings to a folder that is none",
         lambda f: (changed(f, "none", b""),
                    examined(pairs(f / "p"), "--json", str(f / "none" / "x.json"))),
         r"x\.json: cannot be written"),
]  # fmt: skip


CALL_CASES = [*FOLDERS, *SCRIPTS]
