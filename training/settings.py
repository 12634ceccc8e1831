"""The settings that training scripts share. Without torch: --help does not wait for it."""

import dataclasses
from pathlib import Path
from typing import Literal

from utils.config import Precision


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What every training script lets one choose; none of it is part of the method."""

    debug: bool = False
    """A tiny run on any data at hand (the bundled sample if none) that exercises everything."""
    gpu: str = "0"
    """CUDA device numbers, such as 0 or 0,1, or cpu: one process per device."""
    precision: Precision = "auto"
    """auto: bf16 on CUDA, fp32 on the CPU."""
    compile: bool = False
    """torch.compile the networks: minutes at the start, faster steps."""
    seed: int = 0
    run_dir: Path = Path("runs/run")
    """Where the run's checkpoint, weights and logs go."""
    train_images: Path = Path("train_images")
    """Searched for training images where their folders are not given."""
    test_images: Path = Path("test_images")
    """Searched for validation sets; whatever fits is used."""
    cache: Path = Path("cache")
    """Where decoded images are kept."""
    max_minutes: float | None = None
    """Stop, saved, after this long; the same command goes on."""
    keep: int = 2
    """Checkpoints kept, the newest, beside the best by validation."""
    skip_nonfinite: int = 0
    """Leave out steps whose gradients are not finite, at most so many in a row."""
    log_every: int = 100
    val_limit: int | None = None
    """Images per validation set; all by default."""
    dry_run: bool = False
    """Print the resolved configuration and leave."""

    @property
    def steps(self) -> int:
        """Of the whole run; both numbers are the scripts'."""
        return self.epochs * self.steps_per_epoch

    @property
    def sample_cache(self) -> Path | None:
        """Where the bundled sample may be taken from: for --debug, should there be no images."""
        return self.cache / "sample" if self.debug else None


@dataclasses.dataclass(frozen=True)
class DenoiserSettings(RunSettings):
    """The settings of both; the defaults are the paper's."""

    nt: Path = Path("ckpts/NT")
    """Noise generator: folder of VUNet.pt and encoder_k.pt."""
    noise: Literal["noisetransfer", "gaussian", "poisson-gaussian", "real"] = "noisetransfer"
    """Noise of the input: generated; white Gaussian or Poisson-Gaussian noise fitted to the
    reference alone; or the patch's own noise (the ceiling: needs pairs)."""

    # Network
    denoiser: Literal["ridnet", "dncnn", "unet"] = "ridnet"
    width: int = 64

    # Optimisation
    batch: int = 32
    """Of all processes together."""
    grad_accum: int = 1
    """Parts in which a process takes its batch: less memory, the same step."""
    patch: int = 88
    """Pixels a side for the generator; border are cut off each side for the denoiser."""
    border: int = 4
    embedded_size: int = 0
    """Pixels a side of the reference, for a generator trained on larger ones; 0: patch (paper)."""
    epochs: int = 200
    steps_per_epoch: int = 5000
    lr: float = 1e-4
    lr_decay: Literal["halve", "cosine"] = "halve"
    """halve: after the epochs below; cosine: down to zero, after warm_up steps of linear rise."""
    halve_after: tuple[int, ...] = (150, 170, 190)
    warm_up: int = 0
    ema: float = 0.0
    """Decay per step of the averaged weights that are saved and validated; 0: the last (paper)."""
    weight_decay: float = 0.0
    graph: bool = True
    """On one CUDA device, without --compile and --skip-nonfinite: the step as a CUDA graph."""

    @property
    def weights_file(self) -> str:
        noise = "" if self.noise == "noisetransfer" else f"_{self.noise}"
        return f"{self.denoiser}{noise}_g.pt"
