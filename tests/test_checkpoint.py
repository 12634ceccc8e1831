"""Weights and training state on disk: what is read, what is refused, what a crash leaves."""

import hashlib
import os
import pickle
import random
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import NoiseEncoder, NoiseGenerator
from tests.golden import recipe
from tests.helpers import equal_states
from utils.checkpoint import load_state, load_weights, read_torch_file, save_atomically, sha256
from utils.errors import UserError
from utils.training import TrainingState, average_weights, save_weights

NETWORKS = {"encoder": NoiseEncoder, "generator": NoiseGenerator}


# --------------------------------------------------------------------------------- official files


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", NETWORKS)
def test_official_state_dict_loads(tmp_path, official_shapes, name, prefix):
    draw = np.random.default_rng(0)
    state = {
        prefix + key: torch.from_numpy(draw.standard_normal(shape, np.float32))
        for key, shape in official_shapes[name].items()
    }
    torch.save(state, tmp_path / "official.pt")
    network = NETWORKS[name]()
    load_weights(network, tmp_path / "official.pt")
    assert equal_states({prefix + k: v for k, v in network.state_dict().items()}, state)


def test_own_file_is_a_plain_state_dict_on_the_cpu(tmp_path, device):
    network = NoiseGenerator(4, 8).to(device)
    save_weights(network, tmp_path / "VUNet.pt")
    plain = torch.load(tmp_path / "VUNet.pt", weights_only=True)
    assert {v.device.type for v in plain.values()} == {"cpu"}
    assert equal_states(plain, {k: v.cpu() for k, v in network.state_dict().items()})


def test_half_precision_becomes_float32_and_integers_stay(tmp_path):
    state = {"a": torch.rand(3).half(), "b": torch.rand(3).bfloat16(), "n": torch.tensor(7)}
    torch.save(state, tmp_path / "half.pt")
    loaded = load_state(tmp_path / "half.pt")
    assert [v.dtype for v in loaded.values()] == [torch.float32, torch.float32, torch.int64]
    assert torch.equal(loaded["a"], state["a"].float())
    network = NoiseEncoder(4, 8)
    torch.save(network.half().state_dict(), tmp_path / "network.pt")
    other = NoiseEncoder(4, 8)
    load_weights(other, tmp_path / "network.pt")
    assert {v.dtype for v in other.state_dict().values()} == {torch.float32}


def test_files_from_before_the_zip_format_load(tmp_path):
    network = nn.Linear(2, 3)
    torch.save(network.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert equal_states(load_state(tmp_path / "old.pt"), network.state_dict())


# --------------------------------------------------------------------------------------- refused


class Payload:
    """Code that unpickling would run: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, zipped):
    path, trace = tmp_path / "evil.pt", tmp_path / "was_here"
    state = {"weight": torch.zeros(2), "extra": Payload(trace)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    for read in (load_state, read_torch_file):
        with pytest.raises(UserError, match="not loaded for safety") as error:
            read(path)
        assert str(path) in str(error.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the payload works, so its absence above meant something


def test_plain_pickle_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Payload(tmp_path / "was_here"), protocol=2))
    with pytest.raises(UserError, match=r"x\.pt"):
        load_state(tmp_path / "x.pt")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(2)],
        torch.zeros(2),
        {"networks": {"a": torch.zeros(2)}, "step": 3},  # checkpoint.pt of a training run
        {"a": 1.0},
        {0: torch.zeros(2)},
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: expected a plain state dict"):
        load_state(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(tmp_path, zipped):
    """Cut anywhere, or a byte overwritten: a UserError that names the file, or still tensors."""
    path = tmp_path / "weights.pt"
    state = {"a.b": torch.rand(3, 4), "c": torch.zeros(2).half()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    raw, draw = path.read_bytes(), random.Random(0)
    cuts = [raw[: draw.randrange(len(raw))] for _ in range(60)]
    overwritten = []
    for _ in range(120):
        data = bytearray(raw)
        data[draw.randrange(len(data))] = draw.randrange(256)
        overwritten.append(bytes(data))
    messages = []
    for data in [b"", b"no checkpoint at all", *cuts, *overwritten]:
        path.write_bytes(data)
        try:
            load_state(path)
        except UserError as error:
            messages.append(str(error))
    assert all(str(path) in message and "\n" not in message for message in messages)
    assert len(messages) >= 2 + len(cuts) // 2


def test_truncated_file_of_a_network(tmp_path):
    path = tmp_path / "VUNet.pt"
    save_weights(NoiseGenerator(4, 8), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"VUNet\.pt: damaged checkpoint"):
        load_weights(NoiseGenerator(4, 8), path)


@pytest.mark.parametrize("name", ["none.pt", "folder"])
def test_missing_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no such checkpoint") as error:
        load_state(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_another_networks_file(tmp_path):
    path = tmp_path / "x.pt"
    save_weights(NoiseGenerator(4, 8), path)
    network = NoiseEncoder(4, 8)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError, match=r"not the weights of NoiseEncoder") as error:
        load_weights(network, path)
    assert str(path) in str(error.value)
    assert equal_states(network.state_dict(), before)


def test_file_with_a_key_too_many(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict() | {"more": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="foreign more"):
        load_weights(nn.Linear(2, 2), tmp_path / "x.pt")


def test_file_of_another_width(tmp_path):
    path = tmp_path / "x.pt"
    save_weights(NoiseEncoder(8, 8), path)
    network = NoiseEncoder(4, 8)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError, match="choose the width") as error:
        load_weights(network, path)
    assert str(path) in str(error.value)
    assert "(8, 3, 3, 3)" in str(error.value)
    assert "(4, 3, 3, 3)" in str(error.value)
    assert equal_states(network.state_dict(), before)


# --------------------------------------------------------------------------------------- writing


def test_save_makes_folders_and_a_readable_file(tmp_path):
    path = tmp_path / "a" / "b" / "x.pt"
    save_atomically({"a": torch.ones(2)}, path)
    assert [p.name for p in path.parent.iterdir()] == ["x.pt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert torch.equal(load_state(path)["a"], torch.ones(2))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "x.pt"
    save_atomically({"a": torch.ones(2)}, path)

    def half_way(_handle: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", half_way)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else UserError
    with pytest.raises(expected):
        save_atomically({"a": torch.zeros(2)}, path)
    monkeypatch.undo()
    assert torch.equal(load_state(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_save_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_atomically({}, tmp_path / "file" / "x.pt")


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256(tmp_path / "x") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    (tmp_path / "y").write_bytes(recipe.image(1, (300_000,)).tobytes())
    assert sha256(tmp_path / "y") == hashlib.sha256((tmp_path / "y").read_bytes()).hexdigest()


# --------------------------------------------------------------------------------- training state


class State(TrainingState):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.optimisers = {"a": torch.optim.Adam(self.network.parameters(), lr=0.1)}

    def update(self) -> None:
        x = torch.from_numpy(recipe.image(self.step, (4, 2)))
        self.network(x).square().sum().backward()
        self.optimisers["a"].step()
        self.optimisers["a"].zero_grad()
        self.step += 1


def test_training_state_goes_on_exactly(tmp_path):
    state, other = State(), State()
    assert not equal_states(state.state_dict(), other.state_dict())
    for _ in range(3):
        state.update()
    save_atomically(state.content(), tmp_path / "c.pt")
    other.restore(read_torch_file(tmp_path / "c.pt"), tmp_path)
    assert other.step == 3
    for _ in range(2):
        state.update()
        other.update()
    assert equal_states(state.state_dict(), other.state_dict())


@pytest.mark.parametrize("content", [State(5).content(), {}, [], {"networks": 3}, "text"])
def test_training_state_of_other_networks(content):
    with pytest.raises(UserError, match="runs/x: holds a run with other networks"):
        State(3).restore(content, Path("runs/x"))


def test_training_state_with_lost_weights_is_not_saved():
    state = State()
    with torch.no_grad():
        state.network[0].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"not saved: network\.0\.weight is not finite at step 0"):
        state.content()


def test_set_lr_reaches_every_group():
    state = State()
    state.set_lr(0.25)
    assert [g["lr"] for o in state.optimisers.values() for g in o.param_groups] == [0.25]


def test_average_weights():
    """Parameters are averaged, BatchNorm's statistics and counter are copied."""
    ema, network = State().network, State().network
    network(torch.from_numpy(recipe.image(1, (4, 2))))
    before = {k: v.clone() for k, v in ema.named_parameters()}
    average_weights(ema, network, 0.9)
    for name, p in network.named_parameters():
        torch.testing.assert_close(ema.get_parameter(name), 0.9 * before[name] + 0.1 * p)
    for name, b in network.named_buffers():
        assert torch.equal(ema.get_buffer(name), b)
    assert ema[1].num_batches_tracked == 1
