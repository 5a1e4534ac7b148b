import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from steelray.report import charts

SCORES_N = np.random.default_rng(0).gamma(4.0, size=2000)


def test_a_histogram_takes_its_colours_from_the_page_and_tells_what_it_shows():
    marks = [(9.0, "review 9 <b>$x$", charts.REVIEW), (11.0, "reject 11", charts.REJECT)]
    svg = charts.histogram(SCORES_N, SCORES_N[:100], marks, "Score", 'a "description" & more', "one")
    root = ElementTree.fromstring(svg)  # noqa: S314 (our own)
    assert root.attrib["aria-label"] == 'a "description" & more'
    assert root.attrib["role"] == "img"
    assert "width" not in root.attrib
    assert not re.findall(r"#0[0-9]0[0-9]0[0-9]", svg)
    assert not re.findall(r"(?:fill|stroke): #", svg)
    assert "var(--problem)" in svg
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "review 9 <b>$x$" in texts
    assert "<style" not in svg
    assert len(svg) < 16_000


@pytest.mark.parametrize(
    ("current", "reference"), [((), ()), ((1.0,), ()), ((), (2.0, 2.0)), ((5.0, 5.0), (5.0,)), ((1e-9, 1e9), (0.0,))]
)
def test_a_histogram_takes_nothing_one_value_and_extremes(current, reference):
    assert charts.histogram(current, reference, [], "Score", "d", "x").startswith("<svg")


@pytest.mark.parametrize("values", [[np.nan], [1.0], [0.0, 0.0], [-1.0, 2.0, np.nan, 3.0], [7.0] * 40])
def test_a_trend_takes_gaps_and_constants(values):
    names = [str(n) for n in range(len(values))]
    assert charts.trend(values, names, "d", "x", from_zero=False).startswith("<svg")
