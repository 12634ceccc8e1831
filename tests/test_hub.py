"""torch.hub loads the networks from another folder than theirs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = """
import sys, torch
noise = torch.hub.load(sys.argv[1], "noise_transfer", source="local", trust_repo=True)
x = torch.rand(1, 3, 20, 30)
noisy = noise.transfer(x, torch.rand(1, 3, 40, 40))
denoiser = torch.hub.load(sys.argv[1], "denoiser", source="local", trust_repo=True)
print(tuple(noisy.shape), tuple(denoiser(noisy).shape), torch.equal(noisy, x))
"""


def test_from_another_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "(1, 3, 20, 30) (1, 3, 20, 30) False\n", done.stderr


def test_what_an_installation_says() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "egg_info"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "not installed but used from its folder" in done.stderr
    assert done.stderr.count("\n") == 1
