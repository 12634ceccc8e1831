"""Reading and writing weights and training state: weights only, never pickled code."""

import hashlib
import io
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import write_atomically

MAX_ELEMENTS = 2**29  # of all tensors of a file together; the largest own ones have 2**24


def load_state(path: str | Path, part: str = "") -> dict[str, Tensor]:
    """A state dict from disk, on the CPU; official and own files alike, and *.safetensors.

    part: only what is below `part.`, of a file that holds several networks. A `module.` prefix
    (from DataParallel) is dropped, half precision becomes float32.
    Raises UserError if the file is missing, damaged, or holds anything but named dense tensors of
    MAX_ELEMENTS at most.
    """
    read = read_safetensors if Path(path).suffix == ".safetensors" else read_torch_file
    state = read(path)
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise UserError(f"{path}: expected a plain state dict (names -> tensors); is it weights?")
    # A tensor may be declared far larger than what is stored (by strides of 0, as sparse, without
    # data): a few bytes that would become any amount of memory when they are copied.
    hollow = [key for key, value in state.items() if not _is_stored(value)]
    if hollow or sum(value.numel() for value in state.values()) > MAX_ELEMENTS:
        what = f"{hollow[0]} holds less data than its shape has" if hollow else "too many elements"
        raise UserError(f"{path}: expected dense tensors, {what}; download or train it again")
    below = f"{part}." if part else ""
    named = {key.removeprefix("module."): value for key, value in state.items()}
    return {
        key.removeprefix(below): value.float() if value.is_floating_point() else value
        for key, value in named.items()
        if key.startswith(below)
    }


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU; UserError where safetensors is not installed, too."""
    require_checkpoint(path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path}: to read it, pip install safetensors") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: damaged checkpoint ({error}); download or train it again"
        ) from error


def require_checkpoint(path: str | Path) -> None:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; train one first or name another folder")


def read_torch_file(path: str | Path) -> object:
    """`torch.load` on the CPU with weights_only, its many failures turned into one UserError."""
    path = Path(path)
    require_checkpoint(path)
    try:
        _refuse_compressed(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, in damaged files
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a weights-only checkpoint (damaged, or it holds pickled objects that are "
            "not loaded for safety); download or train it again"
        ) from error
    except Exception as error:  # the unpickler trips over damaged bytes in nearly any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path}: damaged checkpoint ({reason}); download or train it again"
        ) from error


def _refuse_compressed(path: Path) -> None:
    """UserError for a zip archive that becomes larger when read; torch compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > path.stat().st_size or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise UserError(
            f"{path}: a compressed archive ({size / 1e6:.1f} MB of contents), expected what "
            "torch.save writes; download or train it again"
        )


def _is_stored(value: Tensor) -> bool:
    """Whether the tensor is an ordinary one of which every element is on the disk."""
    ordinary = value.layout == torch.strided and value.device.type == "cpu"
    if not ordinary or value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def load_weights(network: nn.Module, path: str | Path, part: str = "") -> None:
    """`load_state` into `network`; a mismatch names file, key and both shapes.

    UserError also for weights that are not finite: everything made with them would be NaN or black.
    """
    state, own = load_state(path, part), network.state_dict()
    kind = type(network).__name__
    missing, foreign = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or foreign:
        example = f"lacks {min(missing)}" if missing else f"has a foreign {min(foreign)}"
        raise UserError(
            f"{path}: not the weights of {kind}: {len(own) - len(missing)} of {len(own)} keys "
            f"match, it {example}; is it another network's file?"
        )
    for key, value in own.items():
        if state[key].shape != value.shape:
            raise UserError(
                f"{path}: {key} is {tuple(state[key].shape)}, {kind} of this width has "
                f"{tuple(value.shape)}; choose the width (and embedding size) it was trained with"
            )
        if state[key].is_floating_point() != value.is_floating_point():
            raise UserError(
                f"{path}: {key} is {state[key].dtype}, expected {value.dtype}; is it another "
                "network's file?"
            )
        if not state[key].isfinite().all():
            raise UserError(
                f"{path}: {key} is not finite, the training diverged; use an earlier checkpoint or "
                "train it again"
            )
    network.load_state_dict(state)


def save_atomically(content: object, path: str | Path) -> None:
    """`torch.save`, as `write_atomically` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(buffer.getbuffer(), path)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
