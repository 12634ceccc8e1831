"""What trained weights need to be used as they were trained: one small JSON beside them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_atomically

FILE = "transfer.json"
MIN_REFERENCE = 16  # pixels a side; below it the encoder's last stage has too little to average


@dataclasses.dataclass(frozen=True)
class TransferSettings:
    """How VUNet.pt and encoder_k.pt are used; the defaults are the paper's.

    reference_patch: references are embedded in patches of so many pixels, or whole: None.
    inject_noise: the generator was trained on random maps, not on zeros.
    margin: pixels, a multiple of 4, that images are mirrored by a side before the generator: the
    losses left out what it makes so near to a border.
    """

    reference_patch: int | None = None
    inject_noise: bool = True
    margin: int = 0

    @classmethod
    def read(cls, folder: Path) -> "TransferSettings":
        """Of the weights in `folder`; without a file, as of official weights, the paper's.

        UserError for a file that says anything else, or nothing, of a field.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            return cls()
        try:
            content = json.loads(file.read_text())
            patch, inject_noise = content["reference_patch"], content.get("inject_noise", True)
            margin = content.get("margin", 0)
            size = patch is None or (type(patch) is int and patch >= MIN_REFERENCE)
            side = type(margin) is int and margin >= 0 == margin % 4
            if size and side and type(inject_noise) is bool:
                return cls(patch, inject_noise, margin)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        raise UserError(
            f'{file}: expected {{"reference_patch": N, "inject_noise": true, "margin": M}}, N null '
            f"or at least {MIN_REFERENCE}, M from 0 and divisible by 4; write that, or remove the "
            "file to use the weights as the paper does"
        )

    def write(self, folder: Path, **record: Any) -> None:
        """Into `folder`; record: what else to note of the weights, such as commit and command."""
        content = dataclasses.asdict(self) | record
        write_atomically((json.dumps(content, indent=1) + "\n").encode(), Path(folder) / FILE)
