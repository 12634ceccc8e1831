"""Command lines from dataclasses, presets, the device, and what identifies a run."""

import dataclasses
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from utils.errors import UserError, require

if TYPE_CHECKING:
    import torch  # imported where it is used: --help takes a tenth of the time without it

C = TypeVar("C")

Precision = Literal["auto", "fp32", "tf32", "bf16"]
"""auto: bf16 on a CUDA device that has it in hardware, else fp32. See utils/precision.py."""

# What may change between two starts of one run. The rest makes it the run that it is.
RESUME_FREELY = {
    "preset", "debug", "gpu", "precision", "compile", "graph", "grad_accum", "run_dir",
    "test_images", "cache", "epochs", "keep", "skip_nonfinite", "log_every", "val_limit",
    "max_minutes", "dry_run",
}  # fmt: skip

PACKAGES = (
    "torch", "torchvision", "numpy", "scipy", "piq", "pytorch-ignite", "opencv-python-headless",
)  # fmt: skip


def parse(
    config: type[C],
    argv: list[str] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    debug: Mapping[str, Any] | None = None,
    saved: Callable[[Path], Mapping[str, Any] | None] | None = None,
    ablations: Mapping[str, Mapping[str, Any]] | None = None,
) -> C:
    """The command line as a `config` instance; --help and errors are tyro's.

    presets: values that `--preset NAME` puts in place of the defaults; ablations: values that
    `--ablation NAME` puts on top of those, and debug: that `--debug` puts on top of all. Flags
    given explicitly win. `config` declares the fields `preset`, `ablation` and `debug` where these
    are used.

    saved: the settings of the run in a folder, as plain values, or None; those of `run_dir` become
    the defaults. UserError where an explicit flag contradicts one that is not in RESUME_FREELY.
    """
    argv = sys.argv[1:] if argv is None else argv
    values: dict[str, Any] = {}
    for field, rows in (("preset", presets), ("ablation", ablations)):
        name = _peek(argv, f"--{field}")
        if rows is None or name is None:
            continue
        if name in rows:
            values |= {field: name, **rows[name]}
        elif field == "ablation":  # tyro refuses an unknown preset
            raise UserError(f"--ablation {name}: expected one of {', '.join(rows)}")
    if debug is not None and "--debug" in argv:
        values |= {"debug": True, **debug}
    kept: dict[str, Any] = {}
    if saved is not None:
        folder = _peek(argv, "--run-dir") or values.get("run_dir") or config().run_dir
        before = saved(Path(folder)) or {}
        names = {f.name for f in dataclasses.fields(config)} - RESUME_FREELY
        kept = {name: _typed(config, name, before[name]) for name in names & before.keys()}
    values |= kept
    default = dataclasses.replace(config(), **values) if values else None
    c = tyro.cli(config, prog=_usage(config), args=argv, default=default)
    for name, value in sorted(kept.items()):
        if getattr(c, name) != value:
            raise UserError(
                f"--{name.replace('_', '-')} {_words(getattr(c, name))}: the run in {c.run_dir} "
                f"has {_words(value)}; leave the flag out, or choose another --run-dir"
            )
    return c


def _usage(config: type) -> str:
    """The script and the flags that it cannot do without: tyro's usage line may leave them out."""
    required = (
        f"--{f.name.replace('_', '-')} {f.name.upper()}"
        for f in dataclasses.fields(config)
        if f.default is f.default_factory is dataclasses.MISSING
        and get_origin(f.type) is not Annotated  # Positional: tyro names it
    )
    name = program()
    return " ".join([*(["python"] if name.startswith("-m ") else []), name, *required])


def program() -> str:
    """What follows `python` on this command line: the script's name, or -m and the module's."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None or Path(sys.argv[0]) != Path(module.origin):
        return Path(sys.argv[0]).name
    return f"-m {module.name.removesuffix('.__main__')}"


def _typed(config: type, name: str, value: Any) -> Any:
    """A plain value, as read from a checkpoint, as the field's type has it: paths and tuples."""
    kind = get_type_hints(config)[name]
    if kind is Path:
        return Path(value)
    if get_origin(kind) is tuple:
        return tuple(Path(v) if get_args(kind)[0] is Path else v for v in value)
    return value


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def print_config(config: Any) -> None:
    """A line per field, as `--dry-run` shows it."""
    for name, value in dataclasses.asdict(config).items():
        print(f"{name} = {value}")


def check_training(c: Any, epochs: int = 1) -> None:
    """UserError for a training script's numbers that make no sense, before anything is opened.

    epochs: at least."""
    at_least(
        c, seed=0, width=1, batch=1, grad_accum=1, epochs=epochs, steps_per_epoch=1, warm_up=0,
        keep=1, skip_nonfinite=0, log_every=1, val_limit=1, weight_decay=0, max_minutes=0,
    )  # fmt: skip
    require(0 < c.lr < math.inf, f"--lr {c.lr}: expected a number above 0")
    require(0 <= c.ema < 1, f"--ema {c.ema}: expected 0 (none) to less than 1, such as 0.999")


def at_least(c: Any, **least: float) -> None:
    """UserError for a field below its least value, or NaN; None passes."""
    for name, low in least.items():
        value = getattr(c, name)
        if value is not None and not value >= low:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected {low} or more")


def _peek(argv: list[str], flag: str) -> str | None:
    """The last value of `--flag VALUE` or `--flag=VALUE`, before the command line is parsed."""
    value = None
    for i, word in enumerate(argv):
        name, equals, rest = word.partition("=")
        if name.replace("_", "-") == flag and (equals or i + 1 < len(argv)):
            value = rest if equals else argv[i + 1]
    return value


def beside(path: Path) -> Path:
    """The path, or the one of this name beside the scripts where there is only that."""
    other = Path(__file__).parents[1] / path
    return other if other.exists() and not path.exists() else path


def choose_device(gpu: str) -> "torch.device":
    """The device of a script that runs in one process; of a list the first, said in one line.

    The process then uses it, in full float32 until a script says otherwise.
    """
    from utils.precision import set_float32_precision

    devices = choose_devices(gpu)
    if len(devices) > 1:
        print(f"One process on one device: using the first of {gpu}.")
    use_device(devices[0])
    set_float32_precision("fp32")
    return devices[0]


def use_device(device: "torch.device") -> None:
    """Make a GPU this process's current one; what names no device means GPU 0 until then."""
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)


def choose_devices(gpu: str) -> "list[torch.device]":
    """`--gpu 0,1` -> cuda:0 and cuda:1; `cpu,cpu` -> the CPU twice, for two processes on it.

    Without CUDA any list with GPU 0 is the CPU, once, said in one line. UserError for anything else
    than device numbers or `cpu`, a number twice, and a GPU that is not there.
    """
    import torch

    words = [word.strip() for word in gpu.split(",")]
    if set(words) == {"cpu"}:
        return [torch.device("cpu")] * len(words)
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UserError(f"--gpu {gpu}: expected device numbers such as 0 or 0,1, or cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = [word for word in words if int(word) >= count]
    # Without CUDA, a list with device 0, the default, is no mistake; another device alone is.
    if missing and (count or "0" not in words):
        here = f"the GPUs here are 0 to {count - 1}" if count else "there is no CUDA GPU here"
        raise UserError(f"--gpu {gpu}: no GPU {', '.join(missing)}, {here}; name another, or cpu")
    if not count:
        print("No CUDA GPU found: running on the CPU.")
        return [torch.device("cpu")]
    return [torch.device("cuda", int(word)) for word in words]


def provenance() -> dict[str, Any]:
    """Versions, commit, command and hardware, to stand beside every result."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    # On the CPU of a machine that has a GPU, nothing has used CUDA, nor does this.
    gpu = torch.cuda.get_device_name() if torch.cuda.is_initialized() else None
    return {
        "command": " ".join(["python", program(), *sys.argv[1:]]),
        "commit": git_commit(),
        "hardware": gpu or f"CPU, {torch.get_num_threads()} threads, {platform.machine()}",
        "versions": versions,
    }


def git_commit() -> str:
    """The commit of this code, with `-dirty` when files differ from it; "unknown" outside git."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
