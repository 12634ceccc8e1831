"""The record of a run: files, appending, curves and pictures."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.runlog import RunLog


@dataclasses.dataclass(frozen=True)
class Config:
    run: Path = Path("runs/x")
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.99)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_config_json_holds_settings_and_provenance(tmp_path):
    RunLog(tmp_path / "a" / "run", Config(lr=0.5)).close()
    record = json.loads((tmp_path / "a" / "run" / "config.json").read_text())
    assert record["config"] == {"run": str(Path("runs/x")), "lr": 0.5, "betas": [0.5, 0.99]}
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"command", "commit", "hardware"} <= record.keys()


def test_stats_and_curves(tmp_path):
    log = RunLog(tmp_path, Config())
    log.scalars("train", {"loss": 0.123456789, "lr": 1e-4}, 5)
    assert lines(tmp_path)[0] == {
        "step": 5,
        "group": "train",
        "seconds": pytest.approx(0, abs=5),
        "loss": 0.123457,
        "lr": 1e-4,
    }  # there at once, so that a run can be watched
    log.scalars("val/sidd", {"psnr": 31.25}, 10)
    log.close()
    assert [(x["group"], x["step"]) for x in lines(tmp_path)] == [("train", 5), ("val/sidd", 10)]
    board = events(tmp_path)
    assert set(board.Tags()["scalars"]) == {"train/loss", "train/lr", "val/sidd/psnr"}
    (point,) = board.Scalars("val/sidd/psnr")
    assert (point.step, point.value) == (10, 31.25)


def test_a_second_start_appends(tmp_path):
    for start in range(2):
        log = RunLog(tmp_path, Config(lr=start))
        log.scalars("train", {"loss": start}, start)
        log.close()
    assert [x["step"] for x in lines(tmp_path)] == [0, 1]
    assert json.loads((tmp_path / "config.json").read_text())["config"]["lr"] == 1
    # Of one second and process, the 10th file is read before the 9th: by name.
    assert sorted(p.step for p in events(tmp_path).Scalars("train/loss")) == [0, 1]


def test_a_figure_that_is_not_finite_leaves_valid_json(tmp_path):
    log = RunLog(tmp_path, Config())
    log.scalars("val/x", {"corr_real": float("nan"), "psnr": float("inf")}, 1)
    log.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (tmp_path / "stats.jsonl").read_text()
    line = json.loads(text, parse_constant=refuse)
    assert line["corr_real"] is None
    assert line["psnr"] is None


def test_pictures_stand_a_row_a_sample(tmp_path):
    log = RunLog(tmp_path, Config())
    shape = (2, 3, 8, 12)
    columns = [torch.zeros(shape), torch.full(shape, 2.0), torch.full(shape, 0.5).half()]
    columns[0][1] = 1
    log.pictures("train/a, b, c", columns, 3)
    log.close()
    (image,) = events(tmp_path).Images("train/a, b, c")
    assert image.step == 3
    # make_grid puts 2 pixels around each image.
    assert (image.width, image.height) == (3 * 14 + 2, 2 * 10 + 2)
    pixels = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    centres = pixels[[6, 16]][:, [8, 22, 36]][..., 0]
    # Row 1: black, clipped white, grey; row 2: its own first sample is white.
    assert np.abs(centres.astype(int) - [[0, 255, 127], [255, 255, 127]]).max() <= 1
