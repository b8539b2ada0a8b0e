"""The room's pictures: titles, units, legends, and lines that are the numbers."""

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from tests.paths.make import run

from taskatlas.paths import Embedding, Trajectory, task_tree, trace_runs
from taskatlas.paths.drawing import draw_map, draw_progress, draw_tree, map_panels, points_in_view, task_colours

mpl.use("Agg")
SEEDS = [run("a_1", 0, steps=6), run("a_1", 1, steps=5), run("$b$", 2, steps=7)]


@pytest.fixture(scope="module")
def trace():
    return trace_runs(SEEDS, n_components=6)


@pytest.fixture(autouse=True)
def closed():
    """No figure outlives its test."""
    yield
    plt.close("all")


def lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def texts(ax):
    return [text.get_text() for text in ax.texts]


def drawn_without_complaint(figure, tmp_path):
    figure.savefig(tmp_path / "picture.png", dpi=60)
    assert plt.imread(tmp_path / "picture.png").std() > 0.02


@pytest.mark.parametrize("axes", [(0, 1), (0, 1, 2)])
def test_a_map_says_what_it_shows(trace, tmp_path, axes):
    ax = trace.embedding.plot(axes=axes, tasks=trace.task_of)
    stress = trace.embedding.explained_stress
    assert (
        ax.get_title(loc="left") == f"18 models of 3 runs: {100 * stress[axes[-1]]:.0f} % of stress on {len(axes)} axes"
    )
    assert "[√nat]" in ax.get_xlabel()
    assert f"+{100 * (stress[1] - stress[0]):.1f} %" in ax.get_ylabel()
    assert set(lines(ax)) == {"a_1 (2 seeds, mean bold)", "$b$"}
    assert {text.strip() for text in texts(ax)} >= {"ignorance"}
    line = lines(ax)["$b$"]
    found = line.get_data() if len(axes) == 2 else line.get_data_3d()
    np.testing.assert_array_equal(np.array(found).T, trace.embedding.coordinates[11:][:, list(axes)])
    drawn_without_complaint(ax.figure, tmp_path)


def test_seeds_share_a_colour_and_a_run_begins_hollow(trace):
    ax = trace.embedding.plot(tasks=trace.task_of)
    colours = task_colours(["a_1", "$b$"])
    starts = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_color() for line in starts] == [colours["a_1"], colours["a_1"], colours["$b$"]]
    assert [line.get_xdata()[0] for line in starts] == trace.embedding.coordinates[[0, 6, 11], 0].tolist()


def test_the_time_like_axis_has_a_panel(trace, tmp_path):
    signs = np.array([1, 1, 1, -1, 1, -1] + [1] * 12)
    signed = replace(trace.embedding, eigenvalues=np.abs(trace.embedding.eigenvalues) * signs)
    figure = draw_map(replace(trace, embedding=signed))
    assert [ax.get_ylabel().partition(":")[0] for ax in figure.axes] == ["axis 2", "axis 3", "axis 4, time-like"]
    panel = figure.axes[-1]
    assert panel.spines["left"].get_linestyle() != "-"
    assert panel.yaxis.label.get_color() != figure.axes[0].yaxis.label.get_color()
    assert [ax.get_legend() is not None for ax in figure.axes] == [True, False, False]
    drawn_without_complaint(figure, tmp_path)


def test_panels_of_maps_with_few_axes():
    def panels(signs):
        values = np.sort(np.arange(1.0, len(signs) + 1))[::-1] * signs
        return map_panels(Embedding(np.zeros((8, len(signs))), np.append(values, [0.1] * 3), "a" * 8, range(8)))

    assert panels([1, 1]) == [(0, 1)]
    assert panels([1, -1, 1]) == [(0, 1), (0, 2)]
    assert panels([1, 1, 1, 1, -1, -1]) == [(0, 1), (0, 2), (0, 4)]


def test_a_truth_that_lies_far_out_does_not_squeeze_the_runs():
    runs = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert points_in_view(np.array([[0.5, 0.5], [1.5, 1.5]]), runs) == 2
    assert points_in_view(np.array([[0.5, 0.5], [1.5, 1.5], [1.7, 1.0], [0.5, 0.5]]), runs) == 2
    assert points_in_view(np.array([[9.0, 9.0]]), runs) == 0


def test_progress_of_many_runs(trace, tmp_path):
    figure = draw_progress(trace.runs)
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("training step", "progress to the truth, from 0 to 1")
    assert (right.get_xlabel(), right.get_ylabel()) == (left.get_ylabel(), "accuracy, from 0 to 1")
    assert set(lines(left)) == {"a_1", "$b$"}
    np.testing.assert_array_equal(lines(left)["$b$"].get_ydata(), trace.runs[2].progress)
    np.testing.assert_array_equal(right.lines[2].get_xdata(), trace.runs[2].progress)
    np.testing.assert_array_equal(right.lines[2].get_ydata(), trace.runs[2].accuracy)
    assert left.get_xscale() == "linear"
    drawn_without_complaint(figure, tmp_path)


def test_steps_that_grow_by_ratios_get_an_axis_for_them():
    one = run(steps=9)
    steps = [0, 1, 2, 4, 8, 16, 300, 4000, 50000]
    early = Trajectory("early", one.log_probs, steps, one.ids, one.labels)
    assert draw_progress(trace_runs([early]).runs).axes[0].get_xscale() == "symlog"
    assert early.plot().get_xscale() == "symlog"
    assert one.plot().get_xscale() == "linear"


def test_the_heat_map_says_its_numbers_and_its_unit(tmp_path):
    tree = task_tree([run("_x", 0), run("$y$", 1), run("z", 2)])
    figure = draw_tree(tree)
    tree_ax, map_ax, bar = figure.axes
    names = [label.get_text().removeprefix("\u200b") for label in map_ax.get_yticklabels()]
    order = [tree.names.index(name) for name in names]
    assert sorted(order) == [0, 1, 2]
    assert [text.get_text() for text in map_ax.texts] == [f"{d:.3f}" for d in tree.distances[np.ix_(order, order)].flat]
    assert "[nat]" in tree_ax.get_xlabel()
    assert "[nat]" in bar.get_xlabel()
    assert tree_ax.get_title(loc="left") == "Distance between runs at equal progress"
    assert not any(label.get_parse_math() for label in map_ax.get_yticklabels())
    drawn_without_complaint(figure, tmp_path)
    frechet = draw_tree(task_tree([run("x", 0), run("y", 1)], distance="frechet"))
    assert "Fréchet" in frechet.axes[0].get_title(loc="left")


def test_many_tasks_have_colours_of_their_own():
    for count in (3, 8, 30):
        colours = task_colours([str(i) for i in range(count)] * 2)
        assert len(set(colours.values())) == len(colours) == count


def test_names_of_any_kind_are_drawn_as_they_are(tmp_path):
    odd = [
        Trajectory(name, one.log_probs, one.steps, one.ids, one.labels)
        for name, one in zip(("_hidden", "a" * 90), SEEDS, strict=False)
    ]
    figure = draw_progress(trace_runs(odd).runs)
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown[0].endswith("_hidden")
    assert len(shown[1]) < 45
    drawn_without_complaint(figure, tmp_path)
