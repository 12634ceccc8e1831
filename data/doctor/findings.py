"""What the doctor has to say, for people and, as JSON, for scripts."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from data.folders import Finding

SHOWN = 8  # findings of one kind in one data set; the rest in --json
SEVERITIES = ("error", "warning", "note")


@dataclass
class Report:
    """findings, and of every set its name, layout, folder, length and noise statistics."""

    findings: list[Finding] = field(default_factory=list)
    sets: list[dict] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(any(finding.severity != "note" for finding in self.findings))

    def as_json(self) -> dict:
        findings = [{**asdict(f), "path": str(f.path)} for f in self.findings]
        return {"status": self.status, "sets": self.sets, "findings": findings}


def format_report(report: Report) -> Iterator[str]:
    """The lines to print: sets with their noise, findings by severity, the count of each."""
    for entry in report.sets:
        unit = {"photographs": "images", "BSDS500": "images", "blocks": "blocks"}
        number = f"{entry['length']} {unit.get(entry['layout'], 'pairs')}"
        yield f"{entry['role']:8}  {entry['name']}: {entry['layout']}, {number}"
        if noise := entry.get("noise"):
            titles = {"std": "std", "bias": "bias", "psnr": "PSNR", "correlation": "correlation"}
            digits = {"correlation": 2}
            figures = [
                "{0} {1:.{4}f} ({2:.{4}f} to {3:.{4}f})".format(
                    titles[key], *values, digits.get(key, 1)
                )
                for key, values in noise.items()
            ]
            yield f"{'':10}noise: {', '.join(figures)}"
    shown: dict[tuple, int] = {}
    for finding in report.findings:
        kind = finding.severity, finding.check
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= SHOWN:
            yield str(finding)
    for (severity, check), count in shown.items():
        if count > SHOWN:
            yield f"{severity}: {check}: {count - SHOWN} more like these; --json lists them all"
    counts = [sum(f.severity == severity for f in report.findings) for severity in SEVERITIES]
    yield "{} errors, {} warnings, {} notes".format(*counts)
