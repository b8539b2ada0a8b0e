"""The report's sections for paths: what they say, what hovers over a point, and a slider that moves the runs."""

import re
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from tests.paths.make import run
from tests.test_report import ODD, Page

from taskatlas.errors import BadInput
from taskatlas.paths import Embedding, trace_runs
from taskatlas.paths.files import write_trace
from taskatlas.paths.run_files import open_runs
from taskatlas.report import write_report
from taskatlas.report.paths import paths_sections
from taskatlas.space import TaskSpace
from taskatlas.store import check_receipts

RUNS = (("a", 0, 6), ("a", 1, 5), ("b", 2, 7))


@pytest.fixture(autouse=True)
def unpainted(monkeypatch):
    """Pictures of one byte: this is about the page."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b"."))


def traced(folder, runs=RUNS, *, labels=True, **settings):
    """A folder as ``taskatlas trace`` leaves it."""
    for position, (name, seed, steps) in enumerate(runs):
        one = replace(run(seed=seed, steps=steps), name=name)
        (one if labels else replace(one, labels=None)).save(folder / "runs" / f"{position}.safetensors")
    opened = open_runs([folder / "runs"])
    trace = trace_runs([one.run for one in opened], **settings)
    write_trace(trace, folder / "atlas", runs=opened, settings={}, seed=0)
    return trace


def drawn(figure, name):
    return [line for line in figure.data if line.name == name]


def test_a_folder_of_paths_alone_is_a_page(tmp_path):
    trace = traced(tmp_path)
    page = Page(write_report(tmp_path / "atlas").read_text())
    assert [attributes["id"] for attributes in page.named("section")] == [
        "paths",
        "progress-and-length",
        "distances-between-runs",
    ]
    text = "".join(page.shown)
    assert "How trainings moved" in text
    assert "How checkpoints relate" not in text
    assert "18 snapshots of 3 runs on 30 samples of 5 classes" in text
    assert f"{100 * trace.embedding.explained_stress[-1]:.1f} % of the stress" in text
    assert all(f"{one.length:.3f}" in text and f"{one.tortuosity:.3f}" in text for one in trace.runs)
    assert all(f"{one.accuracy[-1]:.3f}" in text for one in trace.runs)
    assert all("src" not in attributes for attributes in page.named("script"))
    assert check_receipts(tmp_path / "atlas") == (2, [])


def test_both_rooms_share_a_page(tmp_path):
    traced(tmp_path)
    TaskSpace(("x", "y"), np.eye(2)).save(tmp_path / "atlas" / "space.npz")
    page = Page(write_report(tmp_path / "atlas").read_text())
    assert [attributes["id"] for attributes in page.named("section")][:2] == ["task-space", "paths"]
    text = "".join(page.shown)
    assert "How checkpoints relate" in text
    assert "How trainings moved" in text


def test_the_map_hovers_over_every_snapshot(tmp_path):
    trace = traced(tmp_path)
    flat, solid = paths_sections(tmp_path / "atlas")[0].figures
    for figure, axes in ((flat, 2), (solid, 3)):
        line = drawn(figure, "b")[0]
        places = [getattr(line, letter) for letter in "xyz"[:axes]]
        np.testing.assert_allclose(np.array(places).T, trace.embedding.coordinates[11:, :axes], atol=1e-5)
        last = trace.runs[2]
        assert line.hovertext[-1] == (
            f"b<br>step 60<br>progress {last.progress[-1]:.3f}<br>accuracy {last.accuracy[-1]:.3f}"
        )
        assert (line.marker.symbol[0], line.marker.symbol[-1]) == ("circle-open", "circle")
        assert [one.showlegend for one in drawn(figure, "a")[:2]] == [True, False]
        (mean,) = [one for one in drawn(figure, "a, mean of seeds") if one.showlegend]
        assert len(mean.x) == len(trace.embedding.paths[1].places)
        truth = drawn(figure, "ignorance to truth")[0]
        assert truth.text[0] == "ignorance"
        assert truth.line.dash == "dash"
    assert flat.layout.xaxis.title.text == trace.embedding.axis_label(0)
    assert flat.layout.yaxis.scaleratio == 1  # distances are the same in both directions
    assert solid.layout.scene.aspectmode == "data"


def test_time_like_axes_are_marked(tmp_path):
    trace = traced(tmp_path, n_components=6)
    signs = np.array([1, -1, 1, 1, -1, 1] + [1] * 12)
    old = trace.embedding
    signed = Embedding(old.coordinates, np.abs(old.eigenvalues) * signs, old.runs, old.steps, old.metric, old.paths)
    signed.save(tmp_path / "atlas" / "embedding.npz")
    section = paths_sections(tmp_path / "atlas")[0]
    assert "Time-like: axis 2, 5" in section.text
    flat, solid = section.figures
    titles = {flat.layout[f"yaxis{number}"].title.text: flat.layout[f"yaxis{number}"].griddash for number in ("", 2, 3)}
    assert [(title.partition(":")[0], dash) for title, dash in titles.items()] == [
        ("axis 2, time-like", "dash"),
        ("axis 3", "solid"),
        ("axis 5, time-like", "dash"),
    ]
    assert solid.layout.scene.yaxis.title.text.startswith("axis 2, time-like")


def test_the_slider_moves_runs_to_equal_progress(tmp_path):
    trace = traced(tmp_path)
    figure = paths_sections(tmp_path / "atlas")[0].figures[0]
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == [frame.name for frame in figure.frames]
    assert len({frame.name for frame in figure.frames}) == len(figure.frames)
    highest = max(one.progress.max() for one in trace.runs)
    assert figure.frames[-1].name == f"{highest:.3f}"
    ends = figure.frames[-1].data[0]
    best = int(np.argmax([one.progress.max() for one in trace.runs]))
    assert [place is None for place in ends.x] == [position != best for position in range(3)]
    first = sum(len(one.steps) for one in trace.runs[:best]) + int(trace.runs[best].progress.argmax())
    assert ends.x[best] == pytest.approx(trace.embedding.coordinates[first, 0], abs=1e-5)
    markers = [figure.data[position] for position in figure.frames[0].traces]
    assert {marker.marker.symbol for marker in markers} == {"diamond"}
    assert figure.frames[20].data[0].x != figure.frames[21].data[0].x


def test_distances_are_in_the_tree_s_order(tmp_path):
    trace = traced(tmp_path, (("a", 0, 6), ("b", 1, 5), ("c", 2, 7)))
    figure = paths_sections(tmp_path / "atlas")[2].figures[0]
    heat, names = figure.data[-1], list(figure.layout.yaxis2.ticktext)
    order = [trace.tree.names.index(name) for name in names]
    np.testing.assert_allclose(heat.z, trace.tree.distances[np.ix_(order, order)], atol=1e-5)
    assert heat.customdata[0][1] == f"{names[0]} – {names[1]}<br>{trace.tree.distances[order[0], order[1]]:.4f} nat"
    ends = [y for line in figure.data[:-1] for x, y in zip(line.x, line.y, strict=True) if x == 0]
    assert sorted(ends) == [0, 1, 2]
    assert "[nat]" in heat.colorbar.title.text


def test_intervals_stand_beside_their_numbers(tmp_path):
    trace = traced(tmp_path, bootstrap=3)
    maps, table, distances = paths_sections(tmp_path / "atlas")
    assert "over samples" in maps.text
    assert "over seeds" in maps.text
    low, high = trace.intervals["samples"]["length"]["b"]
    assert table.columns.count("95 %") == 2
    assert f"{low:.3f}\u202f–\u202f{high:.3f}" in table.rows[2]
    assert "95 % over seeds" in distances.figures[0].data[-1].customdata[0][1]


def test_runs_without_labels_have_a_page_too(tmp_path):
    traced(tmp_path, labels=False)
    maps, table, distances = paths_sections(tmp_path / "atlas")
    assert not maps.figures[0].frames
    assert "no labels" in table.text
    assert not table.figures
    assert "progress" not in table.columns
    assert "Fréchet" in distances.text
    assert write_report(tmp_path / "atlas").is_file()


def test_one_run_has_no_distances(tmp_path):
    traced(tmp_path, RUNS[:1], n_components=2)
    sections = paths_sections(tmp_path / "atlas")
    assert [section.title for section in sections] == ["Paths", "Progress and length"]
    assert len(sections[0].figures) == 1


def test_saturation_and_what_could_not_be_done_are_said(tmp_path):
    trace = traced(tmp_path)
    opened = open_runs([tmp_path / "runs"])
    other = replace(trace, saturated=0.25, notes=("nothing fits.",))
    write_trace(other, tmp_path / "atlas", runs=opened, settings={}, seed=0)
    text = paths_sections(tmp_path / "atlas")[0].text
    assert "25 % of all pairs" in text
    assert "Nothing fits." in text


def test_names_are_shown_and_never_obeyed(tmp_path):
    trace = traced(tmp_path, [(name, seed, 4) for seed, name in enumerate(ODD)])
    text = write_report(tmp_path / "atlas").read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"b", "i"} == set()
    assert len(page.named("script")) == 1 + text.count("Plotly.newPlot(")
    assert "alert(1)</script>" not in text
    assert all(name in "".join(page.shown) for name in ODD)
    maps, _, distances = paths_sections(tmp_path / "atlas")
    assert {line.hovertext[0].split("<br>")[0] for line in maps.figures[1].data[1:]} == {
        escape(name, quote=False) for name in ODD
    }
    assert max(len(re.sub("<[^>]*>", "", label)) for label in distances.figures[0].layout.yaxis2.ticktext) < 70
    assert len(trace.runs) == len(ODD)


def test_nothing_to_report_says_what_would_be(tmp_path):
    with pytest.raises(BadInput, match="taskatlas trace"):
        write_report(tmp_path)
    with pytest.raises(BadInput, match="taskatlas trace"):
        write_report(tmp_path / "gone")


@pytest.mark.parametrize("file", ["trace.json", "embedding.npz", "tree.npz"])
def test_a_damaged_trace_is_named_and_the_old_page_stays(tmp_path, file):
    traced(tmp_path)
    page = write_report(tmp_path / "atlas")
    before = page.read_bytes()
    (tmp_path / "atlas" / file).write_bytes(b"PK damaged")
    with pytest.raises(BadInput, match=re.escape(file)):
        write_report(tmp_path / "atlas")
    assert page.read_bytes() == before
