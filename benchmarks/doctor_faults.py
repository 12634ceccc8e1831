"""Does the doctor name 12 planted faults, and none where there is none?

    python benchmarks/doctor_faults.py --datasets path/to/datasets --seed 0

The folder holds train_images/ and test_images/, with SIDD scenes, pairs and photographs. It is
copied by links; only planted files are new. Exit status 1 if a fault is missed or anything else is
named. What is planted: sizes by 8 rows, shifts by 3 pixels, JPEG of quality 60 to 95, noise resized
by 2, an ISO wrong by a factor of 8 or more, on a phone whose noise grows with ISO and in a scene
that is not black. What cannot be told is not planted: resized or recompressed noise in a set of
JPEG images, shifts in a set whose pairs are off by nature.
"""

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.doctor.examine import examine
from data.doctor.measures import MIN_COUNT, displacement, measure_pair
from data.folders import DataSet, Finding, PairFile, survey
from data.sidd import parse_scene
from utils.config import parse
from utils.errors import exit_on_user_error
from utils.images import read_image


@dataclass(frozen=True)
class Config:
    """Plant 12 faults in a copy of a datasets folder and ask the doctor."""

    datasets: Path
    """Holds train_images/ and test_images/."""
    seed: int = 0
    skip_clean: bool = False
    """Do not check the clean copy."""


@dataclass(frozen=True)
class Planted:
    fault: str
    check: str  # of the finding that names it
    paths: tuple[Path, ...]  # any of which it may name

    def named(self, findings: list[Finding]) -> Finding | None:
        return next((f for f in findings if f.check == self.check and f.path in self.paths), None)


def link_copy(source: Path, target: Path) -> None:
    """A copy of the folder `source`, linked folders included, whose files are links to it."""

    def link(one: str, other: str) -> None:
        try:
            os.link(os.path.realpath(one), other)
        except OSError:  # another file system
            os.symlink(os.path.realpath(one), other)

    for part in ("train_images", "test_images"):
        shutil.copytree(source / part, target / part, copy_function=link)


class Planter:
    """Plants each fault in another item of the sets below `root`; all drawn from `rng`."""

    def __init__(self, root: Path, rng: np.random.Generator) -> None:
        self.rng, self.used = rng, set()
        self.train, self.test = (
            [s for s in survey(root / f"{part}_images").sets if len(s)]
            for part in ("train", "test")
        )
        self.pair_sets = [s for s in self.train + self.test if s.pairs]
        self.aligned = [s for s in self.pair_sets if not _loose(s)]
        self.lossless = [s for s in self.pair_sets if s.pairs[0].noisy.suffix.lower() == ".png"]

    def faults(self) -> list[Planted]:
        return [
            self.wrong_iso(),  # first: it renames a folder
            self.missing(),
            self.swapped(),
            self.shifted(),
            self.resized(),
            self.recompressed(),
            self.truncated(),
            self.wrong_size(),
            self.duplicate(),
            self.gray(),
            self.empty(),
            self.foreign(),
        ]

    def choose(self, options: list):
        return options[self.rng.integers(len(options))]

    def pair(self, sets: list[DataSet]) -> PairFile:
        data_set = self.choose(sets)
        pair = self.choose(
            [
                p
                for p in data_set.pairs
                if p.noisy.parent not in self.used and p.noisy not in self.used
            ]
        )
        self.used.add(pair.noisy)
        return pair

    def file(self) -> Path:
        data_set = self.choose(self.train + self.test)
        if data_set.pairs:
            pair = self.pair([data_set])
            return self.choose([pair.clean, pair.noisy])
        photo = self.choose([p for p in data_set.photos if p not in self.used])
        self.used.add(photo)
        return photo

    def missing(self) -> Planted:
        pair = self.pair(self.pair_sets)
        gone, left = self.rng.permutation(2)
        sides = pair.clean, pair.noisy
        sides[gone].unlink()
        return Planted("missing partner", "pairing", (sides[left],))

    def swapped(self) -> Planted:
        pair = self.pair(self.pair_sets)
        spare = pair.clean.with_name("spare")
        pair.clean.rename(spare)
        pair.noisy.rename(pair.clean)
        spare.rename(pair.noisy)
        return Planted("swapped sides", "swapped", (pair.noisy,))

    def shifted(self) -> Planted:
        pair = self.pair(self.aligned)
        noisy, down, right = (
            read_image(pair.noisy),
            *self.choose([(3, 0), (-3, 0), (0, 3), (0, -3), (2, 2), (-2, 2)]),
        )
        height, width, _ = noisy.shape
        padded = np.pad(noisy, ((8, 8), (8, 8), (0, 0)), mode="edge")
        _write(pair.noisy, padded[8 - down : 8 - down + height, 8 - right : 8 - right + width])
        return Planted("shifted by 3 px", "misaligned", (pair.noisy,))

    def resized(self) -> Planted:
        # A median of the set is needed: at least 5 pairs.
        pair = self.pair([s for s in self.lossless if len(s.pairs) >= 5])
        clean, noisy = read_image(pair.clean), read_image(pair.noisy)
        height, width, _ = clean.shape
        if measure_pair(clean, noisy).fine_correlation < 0.2 or self.rng.random() < 0.5:
            noise = cv2.resize((noisy - clean.astype(np.float32))[::2, ::2], (width, height))
            _write(pair.noisy, np.clip(clean + noise, 0, 255).round().astype(np.uint8))
        else:
            _write(pair.clean, clean[::2, ::2])
            _write(pair.noisy, noisy[::2, ::2])
        return Planted("resized noise", "resized", (pair.noisy,))

    def recompressed(self) -> Planted:
        pair = self.pair(self.lossless)
        quality = int(self.rng.integers(60, 96))
        data = cv2.imencode(".jpg", read_image(pair.noisy)[..., ::-1], [1, quality])[1]
        _write(pair.noisy, cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
        return Planted(f"JPEG of quality {quality}", "recompressed", (pair.noisy,))

    def truncated(self) -> Planted:
        path = self.file()
        data = path.read_bytes()
        _replace(path, data[: int(len(data) * self.rng.uniform(0.05, 0.98))])
        return Planted("truncated file", "unreadable", (path,))

    def wrong_size(self) -> Planted:
        pair = self.pair(self.pair_sets)
        _write(pair.noisy, read_image(pair.noisy)[:-8])
        return Planted("wrong size", "size", (pair.noisy,))

    def duplicate(self) -> Planted:
        photos = self.choose([s for s in self.test if s.photos])
        folder = photos.photos[-1].parent
        new = folder / f"another{photos.photos[-1].suffix}"
        if self.rng.random() < 0.5:
            source = self.choose(photos.photos)
            shutil.copyfile(source, new)
            return Planted("duplicate in a test set", "duplicate", (source, new))
        source = self.choose([path for s in self.train for path in s.files[::2]])
        _write(new, read_image(source))
        return Planted("training image in a test set", "duplicate", (new,))

    def wrong_iso(self) -> Planted:
        pairs = [p for s in self.pair_sets if s.layout == "SIDD" for p in s.pairs]
        scenes = [pair.noisy.parent for pair in pairs]
        names = [parse_scene(path.name) for path in scenes]
        # SIDD's iPhone 7 has about the same noise at every ISO from 200.
        phones = {n.phone for n in names if n.phone != "IP"}
        phones = [p for p in sorted(phones) if sum(n.phone == p for n in names) > 6]
        while True:
            i = int(self.rng.integers(len(scenes)))
            phone = names[i].phone
            isos = {n.iso for n in names if n.phone == phone}
            far = [iso for iso in sorted(isos) if max(iso / names[i].iso, names[i].iso / iso) >= 8]
            if phone in phones and far and _bright(pairs[i]):
                break
        iso = self.choose(far)
        new = scenes[i].with_name(scenes[i].name.replace(f"_{names[i].iso:05d}_", f"_{iso:05d}_"))
        scenes[i].rename(new)
        self.used.add(scenes[i])
        return Planted(f"ISO {names[i].iso} named {iso} ({phone})", "iso", (new,))

    def gray(self) -> Planted:
        path = self.file()
        _write(path, cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY))
        return Planted("grey image", "grey", (path,))

    def empty(self) -> Planted:
        path = self.file()
        _replace(path, b"")
        return Planted("empty file", "empty", (path,))

    def foreign(self) -> Planted:
        folder = self.choose(self.train + self.test).files[0].parent
        path = folder / self.choose(["notes.docx", "rest.zip.part", "model.pth", "desktop.ini"])
        path.write_bytes(b"something else")
        return Planted("foreign file", "foreign", (path,))


def _bright(pair: PairFile) -> bool:
    stats = measure_pair(read_image(pair.clean), read_image(pair.noisy))
    return stats.counts.sum() >= MIN_COUNT


def _loose(data_set: DataSet) -> bool:
    def off(pair: PairFile) -> bool:
        gray = [read_image(path)[..., 1].astype(np.float32) for path in (pair.clean, pair.noisy)]
        return displacement(*gray)[0] != (0, 0)

    return float(np.mean([off(pair) for pair in data_set.pairs[:8]])) > 0.5


def _write(path: Path, image: np.ndarray) -> None:
    flags = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg") else []
    image = image[..., ::-1] if image.ndim == 3 else image
    _replace(path, cv2.imencode(path.suffix, np.ascontiguousarray(image), flags)[1].tobytes())


def _replace(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # a link: its target must not change
    path.write_bytes(data)


def check(root: Path) -> list[Finding]:
    return examine([(root / "train_images", "")], [root / "test_images"]).findings


def false_alarms(findings: list[Finding], planted: list[Planted]) -> list[Finding]:
    """Errors and warnings that name no planted fault; a fault may also change a set's count."""
    faulty = {path for fault in planted for path in fault.paths}
    return [
        f
        for f in findings
        if f.severity != "note" and f.path not in faulty and not (planted and f.check == "count")
    ]


def main() -> None:
    c = parse(Config)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        link_copy(c.datasets, root)
        alarms = [] if c.skip_clean else false_alarms(check(root), [])
        if not c.skip_clean:
            print(f"clean copy: {len(alarms)} warnings or errors")
        planted = Planter(root, np.random.default_rng(c.seed)).faults()
        findings = check(root)
        print(f"\n| fault (seed {c.seed}) | named | as |\n|---|---|---|")
        for fault in planted:
            named = fault.named(findings)
            where = (named.path if named else fault.paths[0]).relative_to(root)
            said = f"{where}: {named.message}" if named else str(where)
            said = said.replace(f"{root}/", "")
            print(f"| {fault.fault} | {'yes' if named else '**no**'} | {said} |")
        alarms += false_alarms(findings, planted)
        count = sum(fault.named(findings) is not None for fault in planted)
        print(f"\n{count} of {len(planted)} named, {len(alarms)} false alarms")
        for finding in alarms:
            print(f"  {finding}")
    sys.exit(int(count < len(planted) or bool(alarms)))


if __name__ == "__main__":
    exit_on_user_error(main)
