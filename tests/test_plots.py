"""Plots of the report against numpy, closed forms and what they must not mix up."""

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from evaluation import embedding_maps, plots
from tests.helpers import unit_rows


def drawn(figure, *args) -> Figure:
    """The Figure behind its SVG."""
    with plots.matplotlib.rc_context(plots.STYLE):
        return figure.__wrapped__(*args)


def test_autocorrelation_maps_share_a_scale_that_fits_all_but_the_centre() -> None:
    first, second = np.zeros((11, 11)), np.zeros((11, 11))
    first[5, 5] = second[5, 5] = 1
    first[5, 6], first[6, 5] = 0.25, -0.125  # lags (0, 1) and (1, 0)
    second[0, 10] = -0.32  # lag (-5, 5)
    figure = drawn(plots.autocorrelation_maps, {"real noise": first, "a": second})
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert [image.get_clim() for image in images] == [(-0.4, 0.4)] * 2
    # Row 0 of the array is drawn at the top, where the axis says -5, column 0 at -5 on the left.
    assert images[0].origin == "upper"
    assert tuple(images[0].get_extent()) == (-5.5, 5.5, 5.5, -5.5)
    assert figure.axes[0].get_title() == "real noise\n(0,1): 0.25\n(1,0): -0.12"
    np.testing.assert_array_equal(images[1].get_array(), second)


def test_level_counts_agree_with_numpy_and_keep_the_tails() -> None:
    levels = np.random.default_rng(0).integers(-40, 41, 5000)
    noise = levels.astype(np.float32) / 255
    counts = plots.level_counts(np.append(noise, np.nan), limit=15, width=3)
    edges = np.arange(-16.5, 17, 3)
    np.testing.assert_array_equal(counts[1:-1], np.histogram(levels, edges)[0])
    assert counts[0] == (levels < -16.5).sum()
    assert counts[-1] == (levels > 16.5).sum()


def test_distributions_of_gaussian_noise_are_the_closed_form() -> None:
    n, std = 200_000, 0.04
    noise = np.random.default_rng(0).normal(0, std, n).astype(np.float32)
    noises = {"real noise": noise, "NoiseTransfer": noise / 2}
    figure = drawn(plots.cumulative_noise, noises)
    for line, scale in zip(figure.axes[0].lines, (std, std / 2), strict=True):
        x, share = line.get_data()
        expected = stats.norm.cdf(x, scale=255 * scale)
        # 5 standard errors of a share of n values, at most 1 / (2 sqrt n) each
        np.testing.assert_allclose(share, expected, atol=5 * 0.5 / np.sqrt(n))
        assert expected[0] < 0.01
        assert expected[-1] > 0.99

    figure = drawn(plots.noise_histograms, noises)
    assert figure.axes[0].get_yscale() == "log"
    levels, share = figure.axes[0].lines[0].get_data()
    half = (levels[1] - levels[0]) / 2
    scale = 255 * std
    expected = stats.norm.cdf(levels + half, scale=scale) - stats.norm.cdf(
        levels - half, scale=scale
    )
    likely = expected * n > 100
    assert likely.sum() > 30
    standard_error = np.sqrt(expected * (1 - expected) / n)
    assert (abs(share * 2 * half - expected) < 5 * standard_error)[likely].all()


def test_principal_components_agree_with_the_covariance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8)) * [1, 5, 1, 1, 3, 0.5, 1, 1] + 7
    points, share = embedding_maps.principal_components(x)
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), variances[:2])
    np.testing.assert_allclose(share, variances[:2] / variances.sum())
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    # The axes are those of the coordinates with the largest spread, in their own direction.
    assert np.corrcoef(points[:, 0], x[:, 1])[0, 1] > 0.95
    assert np.corrcoef(points[:, 1], x[:, 4])[0, 1] > 0.9
    shuffled = rng.permutation(50)
    np.testing.assert_allclose(
        embedding_maps.principal_components(x[shuffled])[0], points[shuffled]
    )
    # Equal embeddings have no plane: all in one point, no division by zero.
    points, share = embedding_maps.principal_components(np.ones((4, 8), np.float32))
    assert not points.any()
    assert not share.any()


def test_embedding_map_shows_every_image_in_its_group() -> None:
    groups = ["ISO 3200", "ISO 800", "ISO 3200", "ISO 100", "ISO 800"]
    x = unit_rows(5)
    figure = drawn(embedding_maps.embedding_map, x, groups)
    points, _ = embedding_maps.principal_components(x)
    names = ["ISO 100", "ISO 800", "ISO 3200"]  # by number, not by letter
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    for name, drawn_points in zip(names, figure.axes[0].collections, strict=True):
        np.testing.assert_allclose(
            drawn_points.get_offsets(), points[[g == name for g in groups]], atol=1e-7
        )


def test_groups_and_models_never_look_alike() -> None:
    styles = [(s["color"], str(s.get("linestyle"))) for s in plots._lines()]
    assert len(set(styles)) == len(styles) > 12
    looks = {
        (i % len(plots.COLOURS), i % len(embedding_maps.MARKERS))
        for i in range(embedding_maps.MAX_GROUPS)
    }
    assert len(looks) == embedding_maps.MAX_GROUPS


def test_the_same_arrays_give_the_same_text() -> None:
    maps = {"real noise": np.eye(11)}
    assert plots.autocorrelation_maps(maps) == plots.autocorrelation_maps(maps)
