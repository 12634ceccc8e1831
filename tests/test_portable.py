"""Nothing asks for POSIX when it is imported: training starts on Windows as well."""

import subprocess
import sys
from pathlib import Path

CODE = """if True:
    import os, signal, sys
    import filelock, h5py, ignite.distributed, skimage.data, torch.utils.tensorboard, tyro
    import torch.multiprocessing, torchvision.utils
    for name in ("fcntl", "resource", "termios", "pwd", "grp"):
        sys.modules[name] = None
    del signal.SIGUSR1, signal.SIGALRM, signal.SIGHUP, signal.SIGKILL
    del os.sched_getaffinity, os.O_NONBLOCK, os.mkfifo, os.getuid, os.geteuid, os.fork
    import demo, denoise, supp_tbl, train_denoiser, train_denoiser_synthetic, train_noiseTransfer
    import data.doctor.__main__, transfer_noise
    from utils.resume import RunLock, StopSignals
    with StopSignals() as signals:
        assert signals.received is None
"""


def test_scripts_are_imported_without_posix() -> None:
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
