"""The doctor on the bundled sample: silent as it is, and each planted fault is named."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from benchmarks.doctor_faults import Planter, check, false_alarms, link_copy
from data import camera_pairs
from data.doctor import __main__ as doctor
from data.doctor.examine import examine, quick_check
from data.doctor.findings import format_report
from data.doctor.listing import published_count
from data.folders import survey
from data.sample import write_sample
from tests.test_folders import write_bsds, write_pairs
from tests.test_sidd import SCENES, write_scene
from utils.errors import UserError
from utils.images import read_image, write_image


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled sample, with three scenes of each phone and ISO instead of one."""
    root = write_sample(tmp_path_factory.mktemp("doctor") / "sample")
    scenes = root / "train_images" / "sidd_sample"
    scenes.rename(root / "single")
    photos = ["--photos", str(root / "train_images" / "photos"), "--output", str(scenes)]
    camera_pairs.main([*photos, "--layout", "sidd", "--side", "192"])
    return root


def named(findings: list, check: str) -> list[str]:
    return [finding.path.name for finding in findings if finding.check == check]


def test_sample_is_clean(sample: Path, capsys: pytest.CaptureFixture) -> None:
    findings = check(sample)
    assert [str(finding) for finding in findings if finding.severity != "note"] == []
    train, test = sample / "train_images", sample / "test_images"
    assert doctor.main(["--quick", "--photos", str(train / "photos"), "--test", str(test)]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1])
def test_twelve_planted_faults_are_named(sample: Path, tmp_path: Path, seed: int) -> None:
    link_copy(sample, tmp_path)
    planted = Planter(tmp_path, np.random.default_rng(seed)).faults()
    findings = check(tmp_path)
    assert len(planted) == 12
    assert [fault.fault for fault in planted if not fault.named(findings)] == []
    assert [str(finding) for finding in false_alarms(findings, planted)] == []


def test_layout_faults_are_all_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set", "clean", "noisy", ("1", "2", "3"))
    (tmp_path / "set/clean/1.png").unlink()
    (tmp_path / "set/noisy/2.png").unlink()
    write_image(tmp_path / "set/noisy/3.bmp", read_image(tmp_path / "set/noisy/3.png"))
    write_image(tmp_path / "set/stray.png", read_image(tmp_path / "set/noisy/3.png"))
    (tmp_path / "set/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "set/README").write_text("known")
    (tmp_path / "set/LICENSE.txt").write_text("known")
    (tmp_path / "set/rest.zip").write_text("archive")
    (tmp_path / "alone/noisy").mkdir(parents=True)
    write_scene(tmp_path / "Data" / SCENES[0])
    (next((tmp_path / "Data" / SCENES[0]).glob("*GT*"))).unlink()
    write_scene(tmp_path / "Data" / "renamed")
    findings = quick_check(survey(tmp_path))
    assert {"1.png", "2.png"} <= set(named(findings, "pairing"))
    assert any("NOISY" in name for name in named(findings, "pairing"))
    assert any(name.startswith("3.") for name in named(findings, "pairing"))
    assert named(findings, "misplaced") == ["stray.png"]
    assert named(findings, "broken link") == ["gone.png"]
    assert named(findings, "foreign") == ["rest.zip"]
    assert named(findings, "layout") == ["alone"]
    assert named(findings, "scene name") == ["renamed"]
    assert all(finding.action and "\n" not in str(finding) for finding in findings)


def test_counts_of_published_sets(tmp_path: Path) -> None:
    write_bsds(tmp_path / "BSDS500")
    write_image(tmp_path / "DIV2K/DIV2K_train_HR/0001.png", np.zeros((40, 40, 3), np.uint8))
    write_scene(tmp_path / "sidd/SIDD_Medium_Srgb/Data" / SCENES[0])
    write_pairs(tmp_path / "v", "ValidationGtBlocksSrgb", "ValidationNoisyBlocksSrgb")
    expected = {s.layout: published_count(s) for s in survey(tmp_path).sets}
    assert expected == {"BSDS500": None, "photographs": 800, "SIDD": 320, "paired folder": 1280}
    messages = [f.message for f in quick_check(survey(tmp_path)) if f.check == "count"]
    assert "1 images in train/, published are 200" in messages
    assert "1 images in val/, published are 100" in messages
    assert "1 images, published are 800" in messages


def test_blocks_in_mat_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clean = np.full((3, 2, 64, 64, 3), 100) + rng.integers(0, 30, (3, 2, 1, 1, 3))
    noisy = clean + rng.normal(0, 9, (3, 2, 64, 64, 3))
    noisy[2, 1] = clean[2, 1]
    for stem, blocks in (("Gt", clean), ("Noisy", noisy)):
        name = f"Validation{stem}BlocksSrgb"
        scipy.io.savemat(tmp_path / f"{name}.mat", {name: blocks.round().astype(np.uint8)})
    report = examine([], [tmp_path])
    assert [entry["length"] for entry in report.sets] == [6]
    assert named(report.findings, "identical") == ["ValidationNoisyBlocksSrgb.mat[5]"]
    assert [f.message for f in report.findings if f.check == "count"] == [
        "6 blocks, published are 1280"
    ]
    # Five blocks of 12,288 values: the median of their standard deviations to 1 %.
    assert report.sets[0]["noise"]["std"][0] == pytest.approx(9, rel=0.03)


def test_image_kinds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        write_image(tmp_path / f"p/{i}.png", rng.integers(0, 255, (48, 48, 3), np.uint8))
    from PIL import Image

    with Image.open(tmp_path / "p/0.png") as image:
        image.convert("L").save(tmp_path / "p/0.png")
        image.convert("RGBA").save(tmp_path / "p/1.png")
        image.save(tmp_path / "p/2.png", format="JPEG")
    kinds = Counter((f.severity, f.check, f.path.name) for f in quick_check(survey(tmp_path / "p")))
    assert kinds == {
        ("warning", "grey", "0.png"): 1,
        ("note", "depth", "p"): 1,
        ("note", "suffix", "2.png"): 1,
    }


def test_report_status_and_json(sample: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_image(folder / "a.png", read_image(sample / "test_images/sample_photos/01_astronaut.png"))
    (folder / "b.png").write_bytes(b"not an image")
    out = tmp_path / "out.json"
    arguments = ["--photos", str(folder), "--test", str(sample / "test_images/sample_photos")]
    assert doctor.main([*arguments, "--json", str(out)]) == 1
    written = json.loads(out.read_text())
    assert written["status"] == 1
    assert [(f["check"], Path(f["path"]).name) for f in written["findings"]] == [
        ("unreadable", "b.png"),
        ("duplicate", "01_astronaut.png"),
    ]
    assert {"name", "layout", "role", "folder", "length", "noise"} == set(written["sets"][0])
    lines = list(format_report(examine([(folder, "")], [])))
    assert lines[-1] == "1 errors, 0 warnings, 0 notes"


def test_explicit_sets_must_be_complete_and_of_their_kind(sample: Path) -> None:
    train = sample / "train_images"
    report = examine(
        [(train / "sidd_sample", "pairs"), (train / "photos", "pairs")],
        [],
        quick=True,
        published={train / "sidd_sample": None},
    )
    assert [(f.check, f.path.name) for f in report.findings] == [
        ("layout", "photos"),
        ("count", "sidd_sample"),
    ]
    assert "66 of 160" in report.findings[1].message


def test_unusable_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="neither is there"):
        doctor.main([])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        doctor.main(["--sidd", "nowhere"])
    (tmp_path / "train_images").mkdir()
    assert doctor.main([]) == 1  # no data set
