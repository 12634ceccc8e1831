"""safetensors, from_pretrained and save_pretrained, on local folders and a cache of the Hub."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import NoiseEncoder, NoiseGenerator, NoiseTransfer, build_denoiser
from models.denoisers import denoiser_from_checkpoint
from models.embedding import StatisticsHead
from tests.helpers import equal_states, images
from utils.checkpoint import load_state
from utils.errors import UserError

hub = pytest.importorskip("huggingface_hub")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.usefixtures("shallow")
CARD = "---\nlicense: mit\n---\n\n# Noise of one camera\n"


@pytest.fixture
def transfer() -> NoiseTransfer:
    parts = NoiseEncoder(8, 12), NoiseGenerator(8, 12)
    network = NoiseTransfer(*parts, 48, False, margin=8, statistics=StatisticsHead(12))
    network.card = CARD
    return network


def same(a: NoiseTransfer, b: NoiseTransfer) -> bool:
    settings = [(n.reference_patch, n.inject_noise, n.margin, n.card) for n in (a, b)]
    return equal_states(a.state_dict(), b.state_dict()) and settings[0] == settings[1]


def test_saved_and_read_again(transfer, tmp_path, device):
    transfer.save_pretrained(tmp_path / "a")
    files = {"model.safetensors", "transfer.json", "README.md"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == files
    assert (tmp_path / "a/README.md").read_text() == CARD
    settings = json.loads((tmp_path / "a/transfer.json").read_text())
    assert settings == {
        "reference_patch": 48, "inject_noise": False, "margin": 8, "width": 8, "embed_dim": 12,
    }  # fmt: skip
    for read in NoiseTransfer.from_pretrained, NoiseTransfer.from_checkpoint:
        assert same(read(tmp_path / "a"), transfer)
        there = read(str(tmp_path / "a"), device)
        assert {x.device.type for x in there.state_dict().values()} == {device.type}
        assert not any(p.requires_grad for p in there.parameters())
    # What any reader of safetensors finds: the state dict.
    state = safetensors.load_file(tmp_path / "a/model.safetensors")
    assert equal_states(state, dict(transfer.state_dict()))


def test_files_of_the_official_names_go_first(transfer, tmp_path):
    transfer.save_pretrained(tmp_path)
    torch.save(NoiseEncoder(4, 8).state_dict(), tmp_path / "encoder_k.pt")
    torch.save(NoiseGenerator(4, 8).state_dict(), tmp_path / "VUNet.pt")
    assert NoiseTransfer.from_pretrained(tmp_path).generator.width == 4


def test_from_the_hub(transfer, tmp_path):
    """A cache in the Hub's layout: no network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--me--camera"
    transfer.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    where = {"cache_dir": tmp_path, "local_files_only": True}
    assert same(NoiseTransfer.from_pretrained("me/camera", **where), transfer)
    with pytest.raises(hub.errors.LocalEntryNotFoundError):
        NoiseTransfer.from_pretrained("me/other", **where)


def test_pushed_to_the_hub(transfer, tmp_path, monkeypatch):
    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> hub.RepoUrl:
            return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, folder_path: Path, **_: object) -> str:
            shutil.copytree(folder_path, tmp_path / "there")
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert transfer.push_to_hub("me/camera") == "done"
    assert same(NoiseTransfer.from_pretrained(tmp_path / "there"), transfer)


def test_a_card_is_made_where_there_is_none_and_kept_where_there_is(transfer, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    transfer.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    transfer.card = None
    transfer.save_pretrained(tmp_path / "new")
    assert hub.ModelCard.load(tmp_path / "new/README.md").data.tags == [
        "model_hub_mixin", "pytorch_model_hub_mixin",
    ]  # fmt: skip


def test_a_denoiser_of_safetensors(tmp_path):
    denoiser = build_denoiser("dncnn", 8).eval()
    safetensors.save_file(denoiser.state_dict(), tmp_path / "dncnn_g.safetensors")
    noisy = images(1, 1, 3, 9, 12)
    read = denoiser_from_checkpoint(tmp_path / "dncnn_g.safetensors")
    assert torch.equal(read(noisy), denoiser(noisy))


@pytest.mark.parametrize("content", [b"", b"\xff" * 9, b"version https", None])
def test_damaged_files(content, tmp_path):
    file = tmp_path / "model.safetensors"
    if content is None:
        safetensors.save_file({"a": torch.ones(99)}, file)
        content = file.read_bytes()[:-1]
    file.write_bytes(content)
    for read in NoiseTransfer.from_pretrained, lambda folder: load_state(folder / file.name):
        with pytest.raises(UserError, match=r"model\.safetensors: damaged checkpoint \(.*downloa"):
            read(tmp_path)


def test_files_of_another_network(tmp_path):
    safetensors.save_file({"generator.a": torch.ones(9)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not the weights of a NoiseEncoder"):
        NoiseTransfer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_state(tmp_path / "other.safetensors")


CODE = """
import sys
sys.modules |= dict.fromkeys(["huggingface_hub", "safetensors"])
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from utils.errors import UserError
for call in (
    lambda: NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8)).save_pretrained("supp/none"),
    lambda: NoiseTransfer.from_pretrained("no/folder"),
    lambda: NoiseTransfer.from_pretrained("ckpts/NT"),
):
    try:
        call()
    except (ImportError, UserError) as error:
        print(error)
"""


def test_neither_is_needed() -> None:
    root, command = Path(__file__).parent.parent, [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "needs more packages: pip install huggingface_hub safetensors",
        "no/folder: no such folder; for the Hub's, pip install huggingface_hub",
    ], done.stderr
