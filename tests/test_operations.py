"""Device operations a training step: below a bound, as they cost a GPU's user more than the GPU."""

import pytest

from benchmarks.operations import Config, count, main


@pytest.mark.parametrize(
    ("name", "most"),
    [("generator", 2500), ("encoder", 800), ("ridnet", 600), ("dncnn", 500), ("unet", 500)],
)
def test_operations_of_a_step(name: str, most: int) -> None:
    """The number depends on depth, not on width: small widths stand for the paper's."""
    operations, waits = count(name, Config(width=8, batch=4))
    assert waits == []
    assert 100 < operations.total() <= most, operations.most_common(20)


def test_the_table(capsys: pytest.CaptureFixture) -> None:
    main(["--names", "unet", "--width", "4", "--batch", "2", "--kinds"])
    out = capsys.readouterr().out
    assert "unet" in out
    assert "convolution_backward" in out
