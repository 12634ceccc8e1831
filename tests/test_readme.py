"""README: its Python runs on the shipped weights, its links lead somewhere, its sums are true."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import train_denoiser
import train_denoiser_synthetic
import train_noiseTransfer
from evaluation.tables import Column, Table
from figs import make_readme
from utils.checkpoint import sha256

ROOT = Path(__file__).parent.parent
TRAINING = train_noiseTransfer, train_denoiser, train_denoiser_synthetic
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in (
        "README.md",
        "ckpts/README.md",
        "benchmarks/README.md",
        "docs/notebook.md",
        "docs/pipelines.md",
    )
}
TABLES = {path.stem: make_readme.read_csv(path) for path in (ROOT / "ckpts/tables").glob("*.csv")}


USE, AUGMENT = re.findall(r"```python\n(.*?)```", PAGES["README.md"], re.DOTALL)


def test_python_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(USE, names)
    noisy = names["noisy"]
    assert noisy.shape == (4, 3, 200, 300)
    assert noisy.min() >= 0
    assert noisy.max() <= 1


def test_augmentation_example(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("deepinv", "kornia"):
        pytest.importorskip(package)
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(USE + AUGMENT, names)
    assert names["crops"].shape == (4, 3, 64, 64)
    for name in ("measured", "augmented"):
        assert names[name].shape == names["clean"].shape
        assert 0 <= names[name].min() < names[name].max() <= 1


FIRST, *PIPELINES = re.findall(r"```python\n(.*?)```", PAGES["docs/pipelines.md"], re.DOTALL)


@pytest.mark.parametrize(
    ("code", "package"),
    [*zip(PIPELINES, ["torchvision", "deepinv", "kornia", "huggingface_hub"], strict=True)],
)
def test_pipelines(
    code: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    (tmp_path / "ckpts").symlink_to(ROOT / "ckpts")
    monkeypatch.chdir(tmp_path)
    assert len(code.splitlines()) <= 10
    names: dict = {}
    exec(FIRST + code, names)
    if package != "huggingface_hub":
        assert names["noisy"].shape[:2] == names["clean"].shape[:2]
        assert 0 <= names["noisy"].min() < names["noisy"].max() <= 1


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link


def test_length() -> None:
    assert len(PAGES["README.md"].splitlines()) < 200
    fenceless = re.sub(r"```.*?```", "", PAGES["ckpts/README.md"], flags=re.DOTALL)
    assert len(re.findall(r"^(?!\||<!--|#).+$", fenceless, re.M)) <= 60  # of prose


def test_commands_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of the three training scripts, as they are or with <noise> filled in."""
    monkeypatch.chdir(tmp_path)
    scripts = {m.__name__: m for m in TRAINING}
    for page in ("README.md", "ckpts/README.md"):
        blocks = "".join(re.findall(r"```sh\n(.*?)```", PAGES[page], re.DOTALL))
        found = re.findall(r"^python (train_\w+)\.py (.*)$", blocks.replace("\\\n", ""), re.M)
        assert {name for name, _ in found} == set(scripts)
        for name, flags in found:
            words = shlex.split(flags.replace("<noise>", "real"), comments=True)
            scripts[name].main([*words, "--dry-run"])


# ------------------------------------------------------------------------------------- the tables


def cells_of(name: str) -> list[list[str]]:
    """The one table of that name on all pages, its header first."""
    (page,) = [text for text in PAGES.values() if make_readme.block(name).search(text)]
    lines = re.findall(r"^\|.*\|$", make_readme.block(name).search(page)[2], re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_table_has_its_csv() -> None:
    found = [n for text in PAGES.values() for n in re.findall("<!-- table: (.*) -->", text)]
    assert sorted(found) == sorted([*TABLES, "results", "weights"])


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_csv(name: str) -> None:
    """Every cell of the results, against the figures that supp_tbl.py wrote.

    A cell of the page is a column of the .csv, or several: mean, low and high, and the truth.
    """
    header, _, *lines = cells_of(name)
    assert len(lines) == len(TABLES[name]) > 0
    for cells, row in zip(lines, TABLES[name], strict=True):
        assert len(cells) == len(header)
        keys = iter([key for key in row if not key.endswith(("_low", "_high"))])
        for cell in cells:
            key = next(keys)
            values = [row[k] for k in make_readme.keys_of(key, row)]
            if " / " in cell:  # beside what it should be
                values.append(row[next(keys)])
            if values[0] == "nan":
                assert cell.startswith("-")
            elif re.fullmatch(r"-?\d+\.\d+( \[.*\])?( / -?\d+\.\d+)?", cell):
                assert_same_figures(cell, values)
            else:
                assert cell == values[0]
        assert not list(keys)


def test_short_table_is_that_of_the_long_one() -> None:
    header, _, *lines = cells_of("results")
    rows = TABLES["noise"]
    assert len(lines) == len(rows)
    for (noise, akld, correlation, strength, ks), row in zip(lines, rows, strict=True):
        assert noise.startswith(row["noise"])
        assert row["reference"] in noise
        assert_same_figures(akld, [row["akld"], row["akld_low"], row["akld_high"]])
        assert_same_figures(correlation, [row["corr_generated"]])
        assert_same_figures(strength, [row["std_ratio"]])
        assert_same_figures(ks, [row["ks"]])
        assert_same_figures(header[2], [row["corr_real"]], slack=0.002)  # moved, for the floor


def assert_same_figures(shown: str, from_csv: list[str], slack: float = 0) -> None:
    """To half a unit of the last digit: the CSV has six digits, and may round another way."""
    ours = re.findall(r"-?\d+\.\d+", shown)
    for a, b in zip(ours, from_csv, strict=True):
        assert abs(float(a) - float(b)) <= slack + 0.51 * 10 ** -len(a.partition(".")[2])


def test_bm3d_is_taken_over_where_the_noisy_input_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "ckpts/tables"
    shutil.copytree(ROOT / "ckpts/tables", kept)
    for page in ("README.md", "ckpts/README.md"):
        (tmp_path / page).write_text(PAGES[page], encoding="utf-8")
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    page = make_readme.block("synthetic").search(PAGES["ckpts/README.md"])[2]
    table = make_readme.read(page, kept / "synthetic.csv")
    bm3d = [r for r in table.rows if make_readme.is_denoiser(r[0], "BM3D")]
    table.rows = [r for r in table.rows if not make_readme.is_denoiser(r[0], "BM3D")]
    monkeypatch.setattr(make_readme, "ROOT", tmp_path)
    make_readme.insert_tables({"synthetic": table}, "")
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert (tmp_path / "ckpts/README.md").read_text() == PAGES["ckpts/README.md"]

    table.rows = [r for r in table.rows if not make_readme.is_denoiser(r[0], "BM3D")]
    table.rows[0][0]["psnr"] = "1"  # of other images
    make_readme.insert_tables({"synthetic": table}, "")
    left = make_readme.read_csv(kept / "synthetic.csv")
    assert sum(make_readme.is_denoiser(row, "BM3D") for row in left) == len(bm3d) - 1


def test_tables_of_other_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A new table gets a place of its own, and rows of two folders follow one another."""
    (tmp_path / "ckpts").mkdir()
    columns = Column("set", "set"), Column("x", "x", ".1f")
    (tmp_path / "ckpts/README.md").write_text("a\n\n<!-- further tables: real -->\n\nb\n")
    for folder, value in (("one", "1.25"), ("two", "2.25")):
        table = Table("new", "A new table", columns)
        table.rows.append({"set": folder, "x": float(value)})
        table.write(tmp_path / folder, ["a note"])
    monkeypatch.setattr(make_readme, "ROOT", tmp_path)
    found = make_readme.find_tables([tmp_path / "one", tmp_path / "two"])
    make_readme.insert_tables(found, "_real")
    make_readme.insert_tables(found, "_real")
    expected = "<!-- table: new_real -->\n\nA new table:\n\n| set | x |\n| --- | ---: |\n"
    expected += "| one | 1.2 |\n| two | 2.2 |\n\n<!-- end -->"
    text = (tmp_path / "ckpts/README.md").read_text()
    assert text == f"a\n\n{expected}\n\n<!-- further tables: real -->\n\nb\n"
    assert (tmp_path / "ckpts/tables/new_real.csv").read_text() == "set,x\none,1.25\ntwo,2.25\n"


@pytest.mark.parametrize(
    ("name", "gpu", "machine"),
    [("train_step", "cpu", "cpu"), ("denoiser_step", "cpu", "cpu"), ("train_step", "0", "h100")],
)
def test_steps_are_those_of_the_samples(name: str, gpu: str, machine: str) -> None:
    file = ROOT / f"benchmarks/results/{name}_{machine}.json"
    rows = json.loads(file.read_text())["tables"][name]
    text = PAGES["benchmarks/README.md"].partition(f"benchmarks.{name} --gpu {gpu}")[2]
    lines = re.findall(r"^\| (?:plain|fp32|bf16).*\|$", text, re.M)[: len(rows)]
    for line, row in zip(lines, rows, strict=True):
        shown = [float(x) for x in line.replace(" s |", " |").strip("| ").split(" | ")[1:]]
        measured = row["median_ms"] / 1e3, row["speedup"], row["gflop_per_sample"]
        assert shown == pytest.approx(measured, rel=5e-3)


# -------------------------------------------------------------------------------------- the weights


def test_weights_table_is_up_to_date() -> None:
    block = make_readme.block("weights").search(PAGES["ckpts/README.md"])[2]
    assert block.strip() == make_readme.weights_table(ROOT / "ckpts")


def test_steps_and_minutes_of_a_resumed_run(tmp_path: Path) -> None:
    seconds = {"VUNet.pt": [1800, 3600, 10, 1810], "ridnet_poisson-gaussian_g.pt": [7200]}
    for name, log in zip(seconds, ("stats", "stats_poisson-gaussian"), strict=True):
        lines = [{"step": 100 * i, "seconds": s} for i, s in enumerate(seconds[name], start=1)]
        (tmp_path / f"{log}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert make_readme.training(tmp_path / "VUNet.pt") == (400, (3600 + 1810) / 60)
    assert make_readme.training(tmp_path / "ridnet_poisson-gaussian_g.pt") == (100, 120)
    (tmp_path / "transfer.json").write_text('{"reference_patch": 64, "steps": 425}')
    assert make_readme.training(tmp_path / "VUNet.pt")[0] == 425


def test_checksums_of_the_weights() -> None:
    rows = re.findall(r"^\| `(\S+\.pt)` .*`([0-9a-f]{64})` \|$", PAGES["ckpts/README.md"], re.M)
    assert {name for name, _ in rows} == {
        path.relative_to(ROOT / "ckpts").as_posix() for path in (ROOT / "ckpts").rglob("*.pt")
    }
    for name, expected in rows:
        assert sha256(ROOT / "ckpts" / name) == expected, name


def test_training_table_is_that_of_the_presets() -> None:
    for script in TRAINING:
        rows = re.search(
            rf"^\|.*`{script.__name__}\.py`.*(\| `paper`(?s:.*))", PAGES["README.md"], re.M
        )
        for preset, row in zip(script.PRESETS, rows[1].splitlines(), strict=False):
            c = script.Config(**script.PRESETS[preset])
            steps, lr = f"{c.epochs * c.steps_per_epoch:,}", f"{c.lr:.0e}".replace("e-0", "e-")
            settings = f"`{preset}` | {c.width} | {c.batch}, {c.patch} | {steps} | {lr}, "
            assert settings in row, script.__name__


def test_the_sample_is_measured_whatever_is_in_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """supp_tbl.py takes it where the named folder is there and holds nothing."""

    def measure(argv: list[str]) -> None:
        folder = Path(argv[argv.index("--test-images") + 1])
        assert folder.is_dir()
        assert not any(folder.iterdir())
        raise InterruptedError

    monkeypatch.setattr(make_readme, "ROOT", tmp_path)
    monkeypatch.setattr(make_readme.supp_tbl, "main", measure)
    with pytest.raises(InterruptedError):
        make_readme.main([])
