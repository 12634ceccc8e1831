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
    """

    reference_patch: int | None = None
    inject_noise: bool = True

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
            size = patch is None or (type(patch) is int and patch >= MIN_REFERENCE)
            if size and type(inject_noise) is bool:
                return cls(patch, inject_noise)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        raise UserError(
            f'{file}: expected {{"reference_patch": N, "inject_noise": true}}, N null or at least '
            f"{MIN_REFERENCE}; write that, or remove the file to embed references whole"
        )

    def write(self, folder: Path, **record: Any) -> None:
        """Into `folder`; record: what else to note of the weights, such as commit and command."""
        content = dataclasses.asdict(self) | record
        write_atomically((json.dumps(content, indent=1) + "\n").encode(), Path(folder) / FILE)
