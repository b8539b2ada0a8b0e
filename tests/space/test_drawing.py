"""Pictures say what they show: every name once, a title, labelled axes with units, the numbers that were given."""

from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from tests.space.make import covariance, features, space_of

from taskatlas.space import TaskSpace, Transfer, probe_growth, select
from taskatlas.space.drawing import draw_space, draw_transfer


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def two_families(m):
    """Two groups of tasks that are close within and far between, and one that is far from all."""
    matrix = np.full((m, m), 0.02)
    half = m // 2
    matrix[:half, :half] = matrix[half:-1, half:-1] = 0.9
    np.fill_diagonal(matrix, 1)
    return space_of(matrix)


def texts(figure):
    """Every text of a figure that is drawn, axes within axes included."""
    figure.canvas.draw()
    return [text for text in figure.findobj(plt.Text) if text.get_visible() and text.get_text()]


def said(figure):
    return [text.get_text() for text in texts(figure)]


@pytest.mark.parametrize("m", [1, 2, 5, 40])
def test_the_map_names_every_checkpoint_once(m):
    space = space_of(covariance(0, m))
    ax = space.plot()
    written = said(ax.figure)
    assert all(written.count(name) == 1 for name in space.names)
    assert f"Task space of {m} checkpoints" in written
    assert "covariance (kernel alignment)" in written
    assert ("Ward distance" in written) == (m > 1)


def test_rows_of_the_map_are_in_the_order_of_the_leaves():
    space = two_families(7).subset([f"task-{i:02d}" for i in (3, 6, 0, 4, 1, 5, 2)])
    ax = space.plot()
    names = [label.get_text() for label in ax.get_yticklabels()]
    expected = space.subset(names).covariance
    assert (ax.images[0].get_array() == expected).all()
    assert ax.images[0].get_clim() == (0, 1)
    first, second = {"task-00", "task-01", "task-02"}, {"task-03", "task-04", "task-05"}
    assert {frozenset(names[i : i + 3]) for i in range(5)} >= {frozenset(first), frozenset(second)}


def test_the_tree_joins_the_rows_and_shares_their_colours():
    space = two_families(7)
    ax = space.plot()
    colour = {label.get_text(): to_hex(label.get_color()) for label in ax.get_yticklabels()}
    assert colour["task-00"] == colour["task-01"] == colour["task-02"]
    assert colour["task-03"] == colour["task-04"] == colour["task-05"]
    assert len({colour["task-00"], colour["task-03"], colour["task-06"]}) == 3
    assert colour["task-06"] == "#8a8a8a"
    (tree,) = [axes for axes in ax.figure.findobj(plt.Axes) if axes.get_xlabel() == "Ward distance"]
    bottom, top = tree.get_ylim()
    assert (bottom, top) == (70, 0)  # ten units a leaf, from the top, as the rows of the map
    branches = {to_hex(c) for lines in tree.collections for c in lines.get_colors()}
    assert branches == {colour["task-00"], colour["task-03"], "#8a8a8a"}


def test_the_map_says_which_kernel():
    made = space_of(covariance(1, 3))
    assert "covariance (debiased CKA)" in said(replace(made, kernel="debiased_cka").plot().figure)


def test_the_map_is_drawn_where_it_is_asked_to():
    figure, (left, right) = plt.subplots(1, 2)
    ax = draw_space(space_of(covariance(2, 4)), right)
    assert ax.figure is figure
    assert right.get_title(loc="left") == "Task space of 4 checkpoints"
    assert not left.images
    assert not left.get_title(loc="left")


@pytest.mark.parametrize("m", [3, 34])
def test_names_do_not_overlap_at_page_width(m):
    ax = space_of(covariance(3, m)).plot()
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    boxes.sort(key=lambda box: box.y0)
    overlaps = [low.y1 - high.y0 for low, high in pairwise(boxes)]
    assert max(overlaps) < 0.35 * boxes[0].height
    assert all(box.x1 <= ax.figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ("mutual_information", "mutual information (nats)"),
        ("coverage", "coverage (nats)"),
        ("entropy", "entropy (nats)"),
        ("facility_location", "facility location"),
    ],
)
def test_a_selection_shows_gains_and_totals(method, label):
    selection = select(space_of(covariance(4, 6)), 4, method=method)
    ax = selection.plot()
    assert ax.get_ylabel() == label
    assert ax.get_title(loc="left") == "What each pick adds"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(selection.names)
    assert [bar.get_height() for bar in ax.patches] == [step.gain for step in selection.steps]
    line = next(line for line in ax.lines if line.get_label() == "total")
    assert list(line.get_ydata()) == selection.totals
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"gain of the step", "total"}


def test_a_selection_shows_steps_and_not_the_start():
    selection = select(space_of(covariance(5, 6)), 4, start=["task-03", "task-05"])
    ax = selection.plot()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(selection.names[2:])
    figure, mine = plt.subplots()
    assert selection.plot(mine) is mine
    assert mine.figure is figure


def scores(k, selected, others):
    return Transfer(tuple("abcdef"[:k]), selected, (0.2, 0.4, 0.6), (("a",),) * 3, others, "macro_f1")


def test_transfer_shows_the_selection_beside_the_band():
    made = [scores(3, 0.9, {"rival": 0.6}), scores(1, 0.7, {"rival": 0.5, "late": 0.1})]
    ax = draw_transfer(made)
    assert ax.get_xlabel() == "checkpoints picked"
    assert ax.get_ylabel() == "macro f1"
    assert ax.get_title(loc="left") == "Transfer to an unseen task"
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert lines["selected"] == ([1, 3], [0.7, 0.9])
    assert lines["random, median"] == ([1, 3], [0.4, 0.4])
    assert lines["rival"] == ([1, 3], [0.5, 0.6])
    assert lines["late"] == ([1], [0.1])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(0.22), pytest.approx(0.58))
    assert "random, 5 % to 95 %" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_single_transfer_shows_its_band_too():
    ax = scores(2, 0.9, {}).plot()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2"]
    assert {"random, 5 % to 95 %", "selected"} == {text.get_text() for text in ax.get_legend().get_texts()}
    segment = ax.collections[0].get_segments()[0][:, 1]
    assert (segment.min(), segment.max()) == (pytest.approx(0.22), pytest.approx(0.58))


def test_growth_shows_divergence_over_samples():
    growth = probe_growth(features(6, 64, (5, 6, 7)), sizes=[16, 32], repeats=2)
    ax = growth.plot()
    assert ax.get_xlabel() == "samples in the probe"
    assert ax.get_ylabel() == "divergence from the full probe (nats)"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["16", "32"]
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert lines["median"] == np.median(growth.divergence, axis=1).tolist()
    assert set(lines["if all tasks were unrelated"]) == {growth.identity_divergence}
    assert {"median", "range of repeats", "if all tasks were unrelated"} == {
        text.get_text() for text in ax.get_legend().get_texts()
    }


def test_names_are_drawn_as_they_are_and_long_ones_shortened(tmp_path):
    names = ("a$^$", "b" * 60 + "end")
    ax = TaskSpace(names, np.array([[1.0, 0.2], [0.2, 1.0]])).plot()
    ax.figure.savefig(tmp_path / "space.png")
    labels = {label.get_text() for label in ax.get_yticklabels()}
    assert "a$^$" in labels
    assert any("…" in label and label.endswith("end") and len(label) <= 48 for label in labels)
