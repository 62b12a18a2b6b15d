"""Curves and histograms: the data behind them and the drawings in both formats."""

import io
import math
import pathlib
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capjax.errors import CapjaxError
from capjax.report import write_curves
from capjax.report.charts import MAX_POINTS, length_histogram, line_chart, panels, shares, ticks

LOG = [
    {"step": 10, "train/loss": 4.0, "learning_rate": 1e-3},
    {"step": 20, "train/loss": 3.0, "val/loss": 3.5, "val/accuracy": 0.25, "val/CIDEr-D": 0.1},
    {"step": 30, "train/loss": 9.0},
    {"step": 30, "train/loss": 2.0, "val/loss": 3.0, "val/accuracy": 0.5, "val/CIDEr-D": 0.4},
    {"step": 40, "train/loss": math.nan, "val/loss": 3.2, "val/accuracy": 0.5, "val/CIDEr-D": 0.3, "other": 1},
]


def test_panels_hold_what_was_logged() -> None:
    charts = {panel.title: {series.name: series for series in panel.series} for panel in panels(LOG)}
    assert list(charts) == [
        "Loss (nats per word)",
        "Next-word accuracy (%)",
        "Validation CIDEr-D × 100, greedy decoding",
        "Learning rate",
    ]
    loss = charts["Loss (nats per word)"]
    assert loss["training"].steps == (10, 20, 30) and loss["training"].values == (
        4.0,
        3.0,
        2.0,
    )  # the resumed step wins
    assert loss["training"].best is None and loss["validation"].best == (30, 3.0)
    cider = charts["Validation CIDEr-D × 100, greedy decoding"]["validation"]
    assert cider.values == (10.0, 40.0, 30.0) and cider.best == (30, 40.0)
    assert charts["Next-word accuracy (%)"]["validation"].best == (30, 50.0)


def test_long_series_are_averaged() -> None:
    rng = np.random.default_rng(0)
    losses = rng.normal(3.0, 0.5, 10 * MAX_POINTS)
    (panel,) = panels([{"step": step, "train/loss": loss} for step, loss in enumerate(losses)])
    (series,) = panel.series
    assert series.averaged == 10
    np.testing.assert_allclose(series.values, losses.reshape(-1, 10).mean(axis=1))


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_even_and_inside(low: float, width: float) -> None:
    places = ticks(low, low + width, 7)
    assert 2 <= len(places) <= 8
    slack = 1e-6 * width
    assert low - slack <= places[0] and places[-1] <= low + width + slack
    steps = np.diff(places)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)
    leading = steps[0] / 10.0 ** math.floor(math.log10(steps[0] * (1 + 1e-7)))
    assert min(abs(leading - factor) for factor in (1, 2, 5)) < 1e-4


def test_whole_numbers_have_whole_ticks() -> None:
    assert ticks(-0.6, 1.6, 5, least=1.0) == [0, 1]
    drawing = ElementTree.fromstring(length_histogram([1, 1], [1]))
    assert [text.text for text in drawing.findall("text") if text.get("text-anchor") == "middle"][:2] == ["0", "1"]


def test_a_perplexity_beyond_all_bounds_has_room() -> None:
    (_, panel) = panels(
        [
            {"step": step, "val/loss": 1.0, "val/perplexity": 10.0**exponent}
            for step, exponent in ((1, 1), (2, 52), (3, 40))
        ]
    )
    drawing = ElementTree.fromstring(line_chart(panel))
    labels = [text for text in drawing.findall("text") if text.get("text-anchor") == "end"]
    assert labels and all(8 * len(label.text) < float(label.get("x")) for label in labels[:-1])
    points = [point.split(",") for point in drawing.find("polyline").get("points").split()]
    assert float(points[0][0]) < float(points[1][0]) < float(points[2][0])


def test_what_training_by_a_reward_minimises_is_no_loss_of_words() -> None:
    log = [{"step": s, "train/loss": 0.3, "train/reward": 0.5 + s / 10, "val/loss": 1.8} for s in (1, 2)]
    reward, loss = panels([{"step": 0, "train/loss": 9.0}, *log])
    assert reward.title == "Reward of captions that were drawn" and reward.series[0].values == (0.6, 0.7)
    assert [(series.name, series.values) for series in loss.series] == [
        ("training", (9.0,)),
        ("validation", (1.8, 1.8)),
    ]


@pytest.mark.parametrize("rate", [1e-3, 3.1e-5, 1e-6])
def test_labels_have_room_beside_a_chart(rate: float) -> None:
    (panel,) = panels([{"step": step, "learning_rate": rate} for step in (1, 2, 3)])
    drawing = ElementTree.fromstring(line_chart(panel))
    labels = [text for text in drawing.findall("text") if text.get("text-anchor") == "end"]
    assert labels and all(8 * len(label.text) < float(label.get("x")) for label in labels)


def test_a_line_chart_is_valid_and_to_scale() -> None:
    for panel in panels(LOG):
        drawing = ElementTree.fromstring(line_chart(panel))
        lines = drawing.findall("polyline")
        assert len(lines) == len(panel.series)
        for line, series in zip(lines, panel.series, strict=True):
            points = np.array([point.split(",") for point in line.get("points").split()], float)
            assert len(points) == len(series.steps)
            if len(points) > 2:  # places on the drawing are an affine map of the data, with y pointing down
                assert np.corrcoef(points[:, 0], series.steps)[0, 1] > 0.9999
                assert np.corrcoef(points[:, 1], series.values)[0, 1] < -0.9999
    assert "best 3.000 at step 30" in line_chart(panels(LOG)[0])


def test_a_single_record_can_be_drawn() -> None:
    (panel,) = panels([{"step": 5, "val/loss": 2.0}])
    assert ElementTree.fromstring(line_chart(panel)).tag.endswith("svg")


def test_lengths_beyond_the_last_bar_are_counted_in_it() -> None:
    assert shares([0, 2, 2, 3, 4, 50], 3) == [1 / 6, 0, 2 / 6, 3 / 6]
    assert shares([], 1) == [0, 0]


def test_bars_are_as_high_as_the_shares() -> None:
    drawing = ElementTree.fromstring(length_histogram([3, 3, 3, 4], [3, 5]))
    bars = {bar.find("title").text: float(bar.get("height")) for bar in drawing.findall("rect")}
    assert set(bars) == {
        "3 words: 75.0 % of generated",
        "4 words: 25.0 % of generated",
        "3 words: 50.0 % of references",
        "5 words: 50.0 % of references",
    }
    assert bars["3 words: 75.0 % of generated"] == pytest.approx(3 * bars["4 words: 25.0 % of generated"], rel=0.01)
    assert "generated: mean 3.2 words" in drawing.get("aria-label")
    ElementTree.fromstring(length_histogram([0], []))


def test_curves_are_a_picture(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "curves.png"
    write_curves(path, LOG, title="costs $5 and $x_{")  # not mathematics
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        assert picture.format == "PNG" and picture.width > 1000
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0x8A, 0x94, 0xA6), (0x1F, 0x5F, 0xBF), (0xD5, 0x5E, 0x00)):  # training, validation, best
        assert (colours == colour).all(axis=1).any()


def test_a_log_without_curves_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CapjaxError, match="expected training records with a loss"):
        write_curves(tmp_path / "curves.png", [{"step": 1, "note": "x"}])
    assert not (tmp_path / "curves.png").exists()
