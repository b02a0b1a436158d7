"""Curves as SVG: well formed, with every value in its place, and small."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from dino_x.report.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Frame,
    MarkedSteps,
    PlotLine,
    Scale,
    draw,
    interval,
    log_ticks,
    thin,
    ticks,
)  # fmt: skip


def line_of(values, label="loss"):
    return PlotLine(label, np.arange(1, len(values) + 1), np.asarray(values, dtype=float))


def points(svg, kind="line"):
    """The places of the first path of a class."""
    root = ElementTree.fromstring(svg)
    path = next(e for e in root.iter("path") if e.get("class", "").split()[0] == kind)
    pairs = path.get("d")[1:].rstrip("Z").split("L")
    return np.array([list(map(float, pair.split())) for pair in pairs])


def test_values_are_where_the_axis_says():
    svg = draw(Chart("t", [line_of([0, 5, 10])], bounds=(0, 10)))
    found = points(svg)
    np.testing.assert_allclose(found[:, 0], [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT])
    np.testing.assert_allclose(found[:, 1], [HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2, TOP])


def test_a_curve_over_orders_of_magnitude_is_logarithmic():
    chart = Chart("t", [line_of([1e-4, 1e-2, 1.0])])
    svg = draw(chart)
    assert "logarithmic" in svg
    places = points(svg)[:, 1]
    assert places[0] - places[1] == pytest.approx(places[1] - places[2], abs=0.2)
    assert not Frame.around(Chart("t", [line_of([0.0, 1e-2, 1.0])])).logarithmic


@pytest.mark.parametrize("count", [MOST_POINTS + 1, 777, 100_003])
def test_long_curves_keep_their_mean_and_their_extremes(count):
    values = np.random.default_rng(1).normal(size=count)
    values[count // 3] = 50.0  # one spike
    drawn, ends = thin(line_of(values))
    assert len(drawn.x) == MOST_POINTS
    assert (ends[:, 0].min(), ends[:, 1].max()) == (values.min(), 50.0)
    assert np.all((ends[:, 0] <= drawn.y) & (drawn.y <= ends[:, 1]))
    assert len(draw(Chart("t", [line_of(values)]))) < 20_000


def test_short_curves_are_drawn_as_they_are():
    drawn, ends = thin(line_of([3, 1, 2]))
    assert ends is None
    assert list(drawn.y) == [3, 1, 2]


def test_labels_and_names_are_text():
    svg = draw(Chart('<b>"', [line_of([1, 2])], reference=(1.5, "<K>")))
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'Chart: <b>"'
    assert "<K>" in [text.text for text in root.iter("text")]


def test_findings_are_stretches_with_their_number():
    svg = draw(Chart("t", [line_of(range(11))], marks=[MarkedSteps(3, 6), MarkedSteps(4, 2, 4)]))
    root = ElementTree.fromstring(svg)
    widths = [float(r.get("width")) for r in root.iter("rect")]
    inner = WIDTH - LEFT - RIGHT
    assert widths == pytest.approx([inner * 0.5, inner * 0.2], abs=0.2)
    assert {"3", "4"} <= {text.text for text in root.iter("text")}


@pytest.mark.parametrize("values", [[5.0], [2.0, 2.0], [0.0, 0.0], [-3.0, -1.0], [1e-300, 1e300]])
def test_any_finite_curve_can_be_drawn(values):
    svg = draw(Chart("t", [line_of(values)], reference=(1.0, "one")))
    assert "nan" not in svg
    assert "inf" not in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("lines", [[], [line_of([])], [line_of([1])] * 7])
def test_what_cannot_be_drawn_is_refused(lines):
    with pytest.raises(ValueError, match="lines"):
        draw(Chart("t", lines))


@pytest.mark.parametrize("span", [(0, 1), (0.3, 0.31), (-7, 1234), (1, 120), (0, 3e-9)])
def test_ticks_are_few_round_and_inside(span):
    low, high = span
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)) in (1, 2, 5)


@pytest.mark.parametrize("span", [(1e-5, 10), (1.2, 40), (1e-12, 1e12)])
def test_logarithmic_ticks_are_few_and_inside(span):
    found = log_ticks(*span)
    assert 1 <= len(found) <= 6
    assert all(span[0] <= tick <= span[1] for tick in found)


def test_an_interval_has_its_dot_between_its_ends():
    scale = Scale.around([0.7, 0.8, 0.9])
    root = ElementTree.fromstring(interval(scale, 0.8, 0.7, 0.9, main=True))
    dot = next(root.iter("circle"))
    assert float(dot.get("cx")) == pytest.approx(80, abs=0.1)
    whisker = next(p for p in root.iter("path") if "whisker" in p.get("class"))
    d = whisker.get("d")
    low, high = float(d[1:].split()[0]), float(d.split("H")[1].split("M")[0])
    assert low < 80 < high
    assert 80 - low == pytest.approx(high - 80, abs=0.2)
    assert "whisker" not in interval(scale, 0.8, None, None, main=False)
