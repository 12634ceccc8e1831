"""Every number and picture of the README's results, again, from ckpts/ alone.

    python -m figs.make_readme        # or: make readme

Runs supp_tbl.py on the bundled sample, puts its tables between the README's markers and their .csv
files into ckpts/tables/ (tests/test_readme.py compares the two), and draws figs/*.png. BM3D takes
most of its quarter of an hour. Timings are benchmarks', and stay as they are.
"""

import re
import shutil
from pathlib import Path

import supp_tbl
from figs import make_akld, make_cost, make_transfer
from utils.errors import UserError, exit_on_user_error

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TABLES = "noise", "known", "cross_scene", "denoising", "synthetic"


def insert(text: str, name: str, table: str) -> str:
    """`text` with the lines between `<!-- table: name -->` and `<!-- end -->` replaced."""
    block = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not block.search(text):
        raise UserError(f"{README}: has no <!-- table: {name} --> ... <!-- end -->; restore it")
    return block.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text)


def main() -> None:
    out, kept = ROOT / "supp" / "tbl", ROOT / "ckpts" / "tables"
    how = ["--gpu", "cpu", "--test-images", "none", "--bm3d", "--passes", "2"]
    supp_tbl.main([*how, "--out", str(out)])
    kept.mkdir(exist_ok=True)
    text = README.read_text(encoding="utf-8")
    for name in TABLES:
        rows = re.findall(r"^\|.*\|$", (out / f"{name}.md").read_text(encoding="utf-8"), re.M)
        text = insert(text, name, "\n".join(rows))
        shutil.copy(out / f"{name}.csv", kept)
    README.write_text(text, encoding="utf-8")
    make_transfer.main([])
    make_akld.main()
    make_cost.main()


if __name__ == "__main__":
    exit_on_user_error(main)
