"""Sections for the room of paths: runs on a map, their progress and lengths, and the distances between them."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import dendrogram

from taskatlas.paths.drawing import (
    QUIET,
    distance_label,
    map_panels,
    points_in_view,
    steps_grow_by_ratios,
    task_colours,
)
from taskatlas.paths.embedding import Embedding, ProjectedPath
from taskatlas.paths.files import TRACE, read_trace
from taskatlas.paths.trace import RunSummary, Trace
from taskatlas.paths.tree import TaskTree
from taskatlas.report.page import LAYOUT, Section

_INK = "#333333"
_OF_STRESS = " of stress"  # left out of an axis's label where there is little room
_FRAMES = 41  # values of progress that the slider offers
_METRICS = {"bhattacharyya": "Bhattacharyya's distance", "hellinger": "Hellinger's", "symmetric_kl": "symmetric KL"}
_LONGEST_LABEL = 36  # letters; the table and what hovers over a figure have the whole name


def paths_sections(folder: Path) -> list[Section]:
    """Sections for the traced runs that are in ``folder``.

    Raises:
        BadInput: a result is damaged.
    """
    if not (folder / TRACE).is_file():
        return []
    trace, source = read_trace(folder), folder / TRACE
    sections = [_map_section(trace, source), _progress_section(trace, source)]
    if trace.tree is not None:
        sections.append(_distance_section(trace, trace.tree, source))
    return sections


def _map_section(trace: Trace, source: Path) -> Section:
    embedding = trace.embedding
    axes, models = embedding.coordinates.shape[1], len(embedding.runs)
    text = (
        f"{models} snapshots of {_count(len(trace.runs), 'run')} on {trace.samples} samples of {trace.classes} classes "
        f"(InPCA of {_METRICS[embedding.metric]}). {_count(axes, 'axis', 'axes')} explain "
        f"{100 * embedding.explained_stress[-1]:.1f} % of the stress{_stress_intervals(trace)}. "
    )
    time_like = [axis + 1 for axis in range(axes) if embedding.signs[axis] < 0]
    if time_like:
        text += (
            f"Time-like: axis {', '.join(map(str, time_like))}; along such an axis distance counts negative, so points "
            "far apart on it are closer than they look. "
        )
    truth = next((path for path in embedding.paths if path.kind == "truth"), None)
    if truth is not None:
        text += (
            "The dashed line is the shortest way from ignorance to the truth, laid onto the map that the runs made; "
            f"what these axes do not show of the truth's place is {truth.residuals[-1]:.2f} in units of the distance. "
        )
    if trace.saturated:
        text += (
            f"{100 * trace.saturated:.2g} % of all pairs of models on a sample overlap by less than the floor, and "
            "their distance is the floor's. "
        )
    text += " ".join(f"{note[:1].upper()}{note[1:]}" for note in trace.notes)
    figures = [_flat_figure(trace)]
    if axes > 2:
        figures.append(_solid_figure(trace))
    return Section("Paths", text.strip(), figures, source=source)


def _stress_intervals(trace: Trace) -> str:
    found = []
    for what in ("samples", "seeds"):
        if what in trace.intervals:
            ends = trace.intervals[what]["explained_stress"]
            found.append(f"{100 * ends['low'][-1]:.1f} to {100 * ends['high'][-1]:.1f} % over {what}")
    return f" (95 %: {'; '.join(found)})" if found else ""


def _flat_figure(trace: Trace) -> Any:
    """The first axis against the second, the others below, and a slider that shows all runs at equal progress."""
    from plotly.subplots import make_subplots

    embedding, panels = trace.embedding, map_panels(trace.embedding)
    below = len(panels) - 1
    specs = [[{"colspan": max(below, 1)}, *[None] * (below - 1)], *([[{}] * below] if below else [])]
    figure = make_subplots(
        rows=len(specs),
        cols=max(below, 1),
        specs=specs,
        row_heights=[0.62, 0.38] if below else None,
        vertical_spacing=0.12,
        horizontal_spacing=0.12,
    )
    for number, axes in enumerate(panels):
        place = {"row": 1 + (number > 0), "col": max(number, 1)}
        for line in _lines(trace, axes, legend=number == 0):
            figure.add_trace(line, **place)
        _dress_axis(figure.update_xaxes, embedding, axes[0], place)
        _dress_axis(figure.update_yaxes, embedding, axes[1], place)
        anchor = f"x{number + 1}" if number else "x"
        figure.update_yaxes(scaleanchor=anchor, scaleratio=1, **place)
    figure.update_layout(**LAYOUT, height=860 if below else 560, title="Runs on the map: ○ first, ● last snapshot")
    if any(run.progress is not None for run in trace.runs):
        _add_slider(figure, trace, panels)
    return figure


def _solid_figure(trace: Trace) -> Any:
    import plotly.graph_objects as go

    embedding = trace.embedding
    figure = go.Figure(list(_lines(trace, (0, 1, 2), legend=True)))
    titles = [embedding.axis_label(axis).replace(_OF_STRESS, "") for axis in range(3)]
    figure.update_layout(
        **LAYOUT | {"margin": {"l": 0, "r": 0, "t": 50, "b": 0}},
        height=540,
        title=f"The first three axes: {100 * embedding.explained_stress[2]:.0f} % of stress; drag to turn",
        legend={"x": 0, "y": 1},
        scene={
            "aspectmode": "data",
            "camera": {"eye": {"x": 0.4, "y": -1.75, "z": 0.75}, "center": {"x": 0.08, "y": 0, "z": -0.12}},
            **{
                f"{letter}axis": {
                    "title": title,
                    "color": QUIET if embedding.signs[axis] < 0 else _INK,
                    "backgroundcolor": "#fafafa",
                }
                for axis, (letter, title) in enumerate(zip("xyz", titles, strict=True))
            },
        },
    )
    return figure


def _lines(trace: Trace, axes: Sequence[int], *, legend: bool) -> list[Any]:
    """The runs and what was laid onto the map, in two or three axes."""
    import plotly.graph_objects as go

    embedding, colours = trace.embedding, task_colours([run.task for run in trace.runs])
    scatter = go.Scatter if len(axes) == 2 else go.Scatter3d
    letters = "xyz"[: len(axes)]
    means = {path.name for path in embedding.paths if path.kind == "mean"}
    lines = [_truth_line(scatter, letters, path, axes, embedding) for path in embedding.paths if path.kind == "truth"]
    first, drawn = 0, set()
    for run in trace.runs:
        points = embedding.coordinates[first : first + len(run.steps)][:, list(axes)].T
        first += len(run.steps)
        faint, last = run.task in means, len(run.steps) - 1
        lines.append(
            scatter(
                **_places(letters, points),
                mode="lines+markers",
                name=_label(run.task),
                legendgroup=run.task,
                showlegend=legend and run.task not in drawn,
                opacity=0.55 if faint else 1,
                line={"color": colours[run.task], "width": (1 if faint else 2) * (1 if len(axes) == 2 else 2)},
                marker={
                    "color": colours[run.task],
                    "size": [8 if place in (0, last) else 4 for place in range(last + 1)],
                    "symbol": ["circle-open" if place == 0 else "circle" for place in range(last + 1)],
                },
                hovertext=_notes(run),
                hoverinfo="text",
            )
        )
        drawn.add(run.task)
    for path in embedding.paths:
        if path.kind == "mean":
            lines.append(
                scatter(
                    **_places(letters, path.coordinates[:, list(axes)].T),
                    mode="lines",
                    name=_label(f"{path.name}, mean of seeds"),
                    legendgroup=path.name,
                    showlegend=legend,
                    line={"color": colours[path.name], "width": 4 if len(axes) == 2 else 7},
                    hovertext=[f"{_plain(path.name)}, mean of seeds<br>progress {place:.3f}" for place in path.places],
                    hoverinfo="text",
                )
            )
    return lines


def _truth_line(scatter: Any, letters: str, path: ProjectedPath, axes: Sequence[int], embedding: Embedding) -> Any:
    """The geodesic, as far as it lies in sight of the runs, its ends named."""
    seen = points_in_view(path.coordinates[:, list(axes)], embedding.coordinates[:, list(axes)])
    points, last = path.coordinates[:seen, list(axes)].T, seen - 1
    whole = seen == len(path.places)
    names = (
        ["ignorance", *[""] * (last - 1), "truth" if whole else "to the truth"] if seen > 1 else ["ignorance"] * seen
    )
    return scatter(
        **_places(letters, points),
        mode="lines+markers+text",
        name="ignorance to truth",
        showlegend=False,
        line={"color": QUIET, "width": 1.5 if len(letters) == 2 else 3, "dash": "dash"},
        marker={
            "color": "#444444",
            "size": [8 if place == 0 or (place == last and whole) else 0.1 for place in range(seen)],
            "symbol": ["square" if place == 0 else "diamond" for place in range(seen)],
        },
        text=names,
        textposition="top right" if len(letters) == 2 else "top center",
        textfont={"color": "#444444"},
        hovertext=[
            f"on the geodesic from ignorance to the truth<br>progress {place:.3f}, residual {residual:.3g}"
            for place, residual in zip(path.places[:seen], path.residuals[:seen], strict=True)
        ],
        hoverinfo="text",
    )


def _add_slider(figure: Any, trace: Trace, panels: Sequence[Sequence[int]]) -> None:
    """A marker for each run, on each panel, that the slider moves to where the run first passes a value of progress."""
    import plotly.graph_objects as go

    highest = max(float(run.progress.max()) for run in trace.runs if run.progress is not None)
    values = np.linspace(0, highest, _FRAMES)
    places = [_at_progress(trace, value) for value in values]
    colours = task_colours([run.task for run in trace.runs])
    names = [_plain(run.name) for run in trace.runs]
    own = len(figure.data)
    for number, axes in enumerate(panels):
        figure.add_trace(
            go.Scatter(
                **_places("xy", places[0][:, list(axes)].T),
                mode="markers",
                showlegend=False,
                marker={
                    "size": 15,
                    "symbol": "diamond",
                    "color": [colours[run.task] for run in trace.runs],
                    "line": {"color": "black", "width": 1.5},
                },
                hovertext=names,
                hoverinfo="text",
            ),
            row=1 + (number > 0),
            col=max(number, 1),
        )
    traces = list(range(own, len(figure.data)))
    figure.frames = [
        go.Frame(
            name=f"{value:.3f}",
            data=[go.Scatter(**_places("xy", place[:, list(axes)].T)) for axes in panels],
            traces=traces,
        )
        for value, place in zip(values, places, strict=True)
    ]
    instant = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    steps = [{"method": "animate", "label": f"{value:.3f}", "args": [[f"{value:.3f}"], instant]} for value in values]
    figure.update_layout(
        sliders=[{"currentvalue": {"prefix": "◆ runs at progress "}, "pad": {"t": 60}, "steps": steps}]
    )


def _at_progress(trace: Trace, value: float) -> np.ndarray:
    """Where each run first passes a value of progress, straight between snapshots; NaN where it never does."""
    found = np.full((len(trace.runs), trace.embedding.coordinates.shape[1]), np.nan)
    first = 0
    for position, run in enumerate(trace.runs):
        points = trace.embedding.coordinates[first : first + len(run.steps)]
        first += len(run.steps)
        if run.progress is None or run.progress.max() < value:
            continue
        after = int(np.argmax(run.progress >= value))
        before = max(after - 1, 0)
        rise = float(run.progress[after] - run.progress[before])
        share = (value - float(run.progress[before])) / rise if rise > 0 else 1.0
        found[position] = points[before] + share * (points[after] - points[before])
    return found


def _progress_section(trace: Trace, source: Path) -> Section:
    tasks = any(not run.name.startswith(run.task) for run in trace.runs)  # a run "cats #2" says its task itself
    known = any(run.progress is not None for run in trace.runs)
    text = (
        "Length is Fisher's, summed over snapshots; tortuosity is length over that of the shortest way between a run's "
        "ends, so 1 is straight. Noise between snapshots lengthens a path: compare runs whose snapshots are alike in "
        "number and spacing. "
    )
    if known:
        text += (
            "Progress is the place on the way from ignorance (0) to the truth (1) that is nearest to a snapshot; the "
            "table gives it, and accuracy, at the end. A regression is a stretch in which it falls below its best."
        )
    else:
        text += "There are no labels, so there is no progress to show."
    intervals = trace.intervals.get("samples", {})
    columns = [
        "run",
        *(["task"] if tasks else []),
        "snapshots",
        "length",
        *(["95 %"] if intervals else []),
        "tortuosity",
    ]
    columns += ["progress", *(["95 %"] if intervals else []), "best", "accuracy", "regressions"] if known else []
    rows = []
    for run in trace.runs:
        row: list[Any] = [run.name, *([run.task] if tasks else []), len(run.steps), run.length]
        row += [*_interval(intervals, "length", run), run.tortuosity]
        if known:
            best = None if run.progress is None else float(run.progress.max())
            row += [_end(run.progress), *_interval(intervals, "progress", run), best, _end(run.accuracy)]
            row.append(len(run.regressions))
        rows.append(row)
    return Section("Progress and length", text, [_progress_figure(trace)] if known else [], columns, rows, source)


def _interval(intervals: Mapping[str, Any], what: str, run: RunSummary) -> list[str]:
    """A cell with both ends, kept on one line, where there are intervals."""
    if not intervals:
        return []
    low, high = intervals[what][run.name]
    return [f"{low:.3f}\u202f–\u202f{high:.3f}"]


def _progress_figure(trace: Trace) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, horizontal_spacing=0.09)
    colours, drawn = task_colours([run.task for run in trace.runs]), set()
    ratios = steps_grow_by_ratios([run.steps for run in trace.runs])
    for run in trace.runs:
        style = {
            "mode": "lines+markers",
            "name": _label(run.task),
            "legendgroup": run.task,
            "line": {"color": colours[run.task], "width": 2},
            "marker": {"size": 4},
            "hovertext": _notes(run),
            "hoverinfo": "text",
        }
        shown = run.steps + 1 if ratios else run.steps  # a logarithm has no place for step 0
        figure.add_trace(go.Scatter(x=shown, y=run.progress, showlegend=run.task not in drawn, **style), row=1, col=1)
        figure.add_trace(go.Scatter(x=run.progress, y=run.accuracy, showlegend=False, **style), row=1, col=2)
        drawn.add(run.task)
    steps = {"title": "training step + 1", "type": "log"} if ratios else {"title": "training step"}
    figure.update_xaxes(**steps, row=1, col=1)
    figure.update_yaxes(title="progress to the truth, 0 to 1", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title="progress to the truth, 0 to 1", row=1, col=2)
    figure.update_yaxes(title="accuracy, 0 to 1", rangemode="tozero", row=1, col=2)
    figure.update_layout(
        **LAYOUT,
        height=430,
        title="Progress over training, and accuracy at equal progress",
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
    )
    return figure


def _distance_section(trace: Trace, tree: TaskTree, source: Path) -> Section:
    text = f"Distance between runs {distance_label(tree)}, in nats, with the tree that joins the closest first. "
    if tree.distance == "progress":
        text += (
            "Two runs are compared over the progress that both pass through, and seeds are averaged: a run that hardly "
            "comes forward is compared near its start only, where all runs are alike."
        )
    return Section("Distances between runs", text, [_distance_figure(trace, tree)], source=source)


def _distance_figure(trace: Trace, tree: TaskTree) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    m = len(tree.names)
    found = dendrogram(tree.linkage, no_plot=True)
    order = [int(leaf) for leaf in found["leaves"] or ()]
    figure = make_subplots(cols=2, column_widths=[0.22, 0.78], shared_yaxes=True, horizontal_spacing=0.01)
    for heights, positions in zip(found["dcoord"], found["icoord"], strict=True):
        figure.add_trace(
            go.Scatter(
                x=heights,
                y=[(position - 5) / 10 for position in positions],
                mode="lines",
                line={"color": QUIET, "width": 1.5},
                hovertemplate="joined at %{x:.4f} nat<extra></extra>",
                showlegend=False,
            ),
            row=1,
            col=1,
        )
    names, values = [tree.names[leaf] for leaf in order], tree.distances[np.ix_(order, order)]
    figure.add_trace(
        go.Heatmap(
            z=values.round(5),
            customdata=_pair_notes(trace, tree, order),
            colorscale="Viridis",
            zmin=0,
            texttemplate="%{z:.3f}" if m <= 12 else None,
            hovertemplate="%{customdata}<extra></extra>",
            colorbar={
                "title": {"text": "Bhattacharyya distance [nat]", "side": "bottom"},
                "orientation": "h",
                "thickness": 12,
                "outlinewidth": 0,
                "x": 0.61,
                "len": 0.75,
                "y": -0.02,
                "yanchor": "top",
            },
        ),
        row=1,
        col=2,
    )
    figure.update_layout(**LAYOUT, height=max(330, 30 * m + 190), title=f"Distance between runs {distance_label(tree)}")
    figure.update_yaxes(range=[m - 0.5, -0.5], showgrid=False, zeroline=False, showticklabels=False)
    figure.update_yaxes(
        tickvals=list(range(m)),
        ticktext=[_label(name) for name in names],
        showticklabels=True,
        side="right",
        ticklabelstandoff=6,
        col=2,
    )
    figure.update_xaxes(title="joined at [nat]", autorange="reversed", showgrid=False, zeroline=False, col=1)
    figure.update_xaxes(showticklabels=False, title=None, col=2)
    return figure


def _pair_notes(trace: Trace, tree: TaskTree, order: Sequence[int]) -> list[list[str]]:
    """What each cell of the heat map says of its pair: the distance and, where they are known, its interval."""
    ends = trace.intervals.get("seeds", {}).get("distances")
    notes = []
    for i in order:
        row = []
        for j in order:
            note = f"{_plain(tree.names[i])} – {_plain(tree.names[j])}<br>{tree.distances[i, j]:.4f} nat"
            if ends is not None and i != j:
                note += f"<br>95 % over seeds: {ends['low'][i][j]:.4f} to {ends['high'][i][j]:.4f}"
            row.append(note)
        notes.append(row)
    return notes


def _notes(run: RunSummary) -> list[str]:
    """What hovers over each snapshot."""
    notes = []
    for position, step in enumerate(run.steps.tolist()):
        note = f"{_plain(run.name)}<br>step {step:g}"
        if run.progress is not None:
            note += f"<br>progress {run.progress[position]:.3f}"
        if run.accuracy is not None:
            note += f"<br>accuracy {run.accuracy[position]:.3f}"
        notes.append(note)
    return notes


def _dress_axis(update: Any, embedding: Embedding, axis: int, place: Mapping[str, int]) -> None:
    time_like = bool(embedding.signs[axis] < 0)
    label = embedding.axis_label(axis) if place["row"] == 1 else embedding.axis_label(axis).replace(_OF_STRESS, "")
    update(
        title={"text": label, "font": {"color": QUIET if time_like else _INK}},
        griddash="dash" if time_like else "solid",
        zeroline=False,
        constrain="domain",
        **place,
    )


def _places(letters: str, points: np.ndarray) -> dict[str, list[float | None]]:
    """Coordinates by letter, short enough for a page; NaN as nothing."""
    return {
        letter: [None if np.isnan(value) else round(float(value), 5) for value in values]
        for letter, values in zip(letters, points, strict=True)
    }


def _end(curve: np.ndarray | None) -> float | None:
    return None if curve is None else float(curve[-1])


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number} {what if number == 1 else several or f'{what}s'}"


def _label(name: str) -> str:
    """A name for an axis or a legend, its middle left out where it is long."""
    half = _LONGEST_LABEL // 2
    return _plain(name if len(name) <= _LONGEST_LABEL else f"{name[:half]}…{name[-half + 1 :]}")


def _plain(name: str) -> str:
    """A name that plotly shows as it is: it takes a few tags of HTML for mark-up."""
    return escape(name, quote=False)
