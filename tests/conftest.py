"""Shared fixtures: the device to test on, and the published figures with the recipe behind them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import data.cross_scene
import models.encoder
import models.generator
from data.sample import Area
from evaluation.image_sets import KnownNoise
from tests.tiny_evaluation import write_networks, write_test_images

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Networks start from the same weights whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """Networks of one block a stage: a third of the time where nothing depends on the depth."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (models.encoder, models.generator):
            patch.setattr(module, "DEPTHS", (1, 1, 1))
        yield


@pytest.fixture(scope="module")
def quick(shallow: None) -> Iterator[None]:
    """Tables of one flat image and of two pairs of scenes, of 32x32: as many rows, fewer images."""

    def small(area: Area) -> Area:
        return area._replace(height=32, width=32)

    pairs = [
        p._replace(reference=small(p.reference), target=small(p.target))
        for p in data.cross_scene.PAIRS[:2]
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.cross_scene, "PAIRS", pairs)
        patch.setattr(KnownNoise, "FLAT", (0.5,))
        yield


@pytest.fixture
def here(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with random networks in ckpts/ and images in test_images/."""
    monkeypatch.chdir(tmp_path)
    write_networks(tmp_path / "ckpts")
    write_test_images(tmp_path / "test_images")
    return tmp_path


@pytest.fixture(scope="session")
def golden() -> dict:
    """What the official implementation computes for the inputs of golden/recipe.py."""
    return json.loads((GOLDEN / "golden.json").read_text())


@pytest.fixture(scope="session")
def official_shapes() -> dict[str, dict[str, list[int]]]:
    """{network: {official key: shape}} for 'encoder', 'generator' and 'ridnet'."""
    return json.loads((GOLDEN / "official_state_dict_keys.json").read_text())
