"""The room's pictures: runs on a map in two or three dimensions, curves of progress, tree beside heat map."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import dendrogram

from taskatlas.paths.embedding import Embedding, ProjectedPath
from taskatlas.paths.trace import RunSummary, Trace
from taskatlas.paths.trajectory import Trajectory
from taskatlas.paths.tree import TaskTree

QUIET = "#8a8a8a"
_PALETTE = ("#1b6ca8", "#c8553d", "#3f7d20", "#7b4b94", "#b8860b", "#008080", "#a23b72", "#556b2f")
_LONGEST_NAME = 40  # characters
_MOST_IN_LEGEND = 24
_MOST_NUMBERS = 12  # tasks, up to which a heat map says its numbers too


def task_colours(tasks: Sequence[str]) -> dict[str, str]:
    """A colour for each task, in the order in which they first come: a palette's, and hues of a circle beyond it."""
    names = list(dict.fromkeys(tasks))
    if len(names) <= len(_PALETTE):
        return dict(zip(names, _PALETTE, strict=False))
    shades = [colorsys.hls_to_rgb(i / len(names), 0.36 + 0.16 * (i % 2), 0.65) for i in range(len(names))]
    return {
        name: f"#{''.join(f'{round(255 * part):02x}' for part in shade)}"
        for name, shade in zip(names, shades, strict=True)
    }


def draw_embedding(
    embedding: Embedding, ax: Any = None, axes: Sequence[int] = (0, 1), tasks: Mapping[str, str] | None = None
) -> Any:
    """Draws the map's runs as lines in two or three of its axes; returns the matplotlib axes."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    flat = len(axes) == 2
    if ax is None:
        figure = plt.figure(figsize=(6.4, 5.0) if flat else (7.2, 5.2), layout="constrained")
        ax = figure.add_subplot(**({} if flat else {"projection": "3d"}))
    own = np.array(embedding.runs)
    names = list(dict.fromkeys(embedding.runs))
    task_of = {name: name if tasks is None else tasks[name] for name in names}
    colours = task_colours(list(task_of.values()))
    means = {path.name for path in embedding.paths if path.kind == "mean"}
    for path in embedding.paths:
        if path.kind == "truth":
            _draw_truth(ax, path, axes, embedding.coordinates[:, list(axes)])
    for name in names:
        rows = np.flatnonzero(own == name)
        points = embedding.coordinates[rows[np.argsort(embedding.steps[rows], kind="stable")]][:, list(axes)]
        task = task_of[name]
        seeds = [other for other, its in task_of.items() if its == task]
        said = f" ({len(seeds)} seeds{', mean bold' if task in means else ''})" if len(seeds) > 1 else ""
        label = f"{_short(task)}{said}" if name == seeds[0] else "_nolegend_"
        _draw_line(ax, points.T, colours[task], label, faint=task in means)
    for path in embedding.paths:
        if path.kind == "mean":
            ax.plot(*path.coordinates[:, list(axes)].T, color=colours[path.name], linewidth=2.6, alpha=0.9, zorder=5)
    for axis, letter in zip(axes, "xyz", strict=False):
        _label_axis(ax, letter, embedding, axis)
    shown = max(axes) + 1 if sorted(axes) == list(range(len(axes))) else embedding.coordinates.shape[1]
    stress = f"{100 * embedding.explained_stress[shown - 1]:.0f} % of stress on {shown} axes"
    ax.set_title(f"{len(embedding.runs)} models of {_runs(len(names))}: {stress}", loc="left", fontsize=12)
    if len(colours) <= _MOST_IN_LEGEND:
        place = {} if flat else {"loc": "upper left", "bbox_to_anchor": (-0.02, 0.98)}
        _legend(ax, title="○ first, ● last snapshot", title_fontsize=8, alignment="left", **place)
    if not flat:
        ax.set_aspect("equal")
        ax.set_box_aspect(ax.get_box_aspect(), zoom=0.98)
        ax.view_init(elev=24, azim=-58)
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.labelpad = 7
            axis.label.set_size(9)
            axis.set_tick_params(labelsize=8)
            axis.set_pane_color("#fafafa")
            axis.line.set_color("#888888")
        ax.grid(color="#e4e4e4", linewidth=0.6)
    else:
        ax.margins(0.1)
        ax.set_aspect("equal", adjustable="datalim")
        ax.grid(color="#eeeeee", linewidth=0.7, zorder=0)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return ax


def map_panels(embedding: Embedding) -> list[tuple[int, int]]:
    """What the first axis is drawn against: the second, the third, and the first time-like one beyond these."""
    axes = embedding.coordinates.shape[1]
    beyond = np.flatnonzero(embedding.signs[3:] < 0)[:1] + 3
    return [(0, axis) for axis in [*range(1, min(axes, 3)), *beyond.tolist()]]


def draw_map(trace: Trace, figure: Any = None) -> Any:
    """Draws the first axis against the others that ``map_panels`` names; returns the figure."""
    import matplotlib.pyplot as plt

    panels = map_panels(trace.embedding)
    if figure is None:
        figure = plt.figure(figsize=(6.2 * len(panels), 5.2), layout="constrained")
    for ax, axes in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        draw_embedding(trace.embedding, ax, axes, trace.task_of)
        if axes != panels[0]:
            ax.set_title("", loc="left")
            if ax.get_legend() is not None:
                ax.get_legend().remove()
    return figure


def draw_run(run: Trajectory, ax: Any = None) -> Any:
    """Draws one run's progress and accuracy over its steps; returns the matplotlib axes."""
    import matplotlib.pyplot as plt

    ax = ax if ax is not None else plt.subplots(figsize=(5.2, 3.6), layout="constrained")[1]
    ax.plot(run.steps, run.progress(), "o-", color=_PALETTE[0], markersize=3.5, label="progress to the truth")
    ax.plot(run.steps, run.accuracy(), "--", color=_PALETTE[1], label="accuracy")
    _dress_curves(ax, [run.steps], "share, from 0 to 1")
    ax.set_title(_short(run.name), loc="left", fontsize=12, parse_math=False)
    _legend(ax)
    return ax


def draw_progress(runs: Sequence[RunSummary], figure: Any = None) -> Any:
    """Draws progress over steps, and accuracy over progress, of all runs that have them; returns the figure."""
    import matplotlib.pyplot as plt

    if figure is None:
        figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = task_colours([run.task for run in runs])
    drawn: set[str] = set()
    for run in runs:
        style = {"color": colours[run.task], "linewidth": 1.4, "marker": ".", "markersize": 4.5}
        label = "_nolegend_" if run.task in drawn else _short(run.task)
        drawn.add(run.task)
        if run.progress is not None:
            left.plot(run.steps, run.progress, label=label, **style)
        if run.progress is not None and run.accuracy is not None:
            right.plot(run.progress, run.accuracy, **style)
    _dress_curves(left, [run.steps for run in runs], "progress to the truth, from 0 to 1")
    left.set_title("Progress of runs", loc="left", fontsize=12)
    right.set(xlabel="progress to the truth, from 0 to 1", ylabel="accuracy, from 0 to 1")
    right.set_title("Accuracy at equal progress", loc="left", fontsize=12)
    for ax in (left, right):
        ax.grid(color="#eeeeee", linewidth=0.7)
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        ax.spines[["top", "right"]].set_visible(False)
    if len(drawn) <= _MOST_IN_LEGEND:
        _legend(left)
    return figure


def draw_tree(tree: TaskTree, figure: Any = None) -> Any:
    """Draws the tree joined to the rows of the heat map of distances, each name once; returns the figure."""
    import matplotlib.pyplot as plt

    m = len(tree.names)
    if figure is None:
        side = float(np.clip(0.32 * m + 1.6, 2.9, 14.0))
        figure = plt.figure(figsize=(side * 1.5 + 1.6, side), layout="constrained")
    tree_ax, map_ax = figure.subplots(1, 2, width_ratios=(0.28, 0.72))
    found = dendrogram(
        tree.linkage, orientation="left", no_labels=True, ax=tree_ax, color_threshold=0, above_threshold_color=QUIET
    )
    order = [int(leaf) for leaf in found["leaves"] or ()]
    tree_ax.set_ylim(0, 10 * m)
    tree_ax.set_xlabel("joined at [nat]", fontsize=9)
    tree_ax.tick_params(labelsize=8)
    tree_ax.spines[["top", "left", "right"]].set_visible(False)
    tree_ax.set_title(f"Distance between runs {distance_label(tree)}", loc="left", fontsize=12)
    values = tree.distances[np.ix_(order, order)]
    image = map_ax.imshow(values, origin="lower", cmap="viridis", aspect="auto", vmin=0, interpolation="nearest")
    map_ax.set_xticks([])
    map_ax.yaxis.tick_right()
    size = float(np.clip(300 / m, 4.0, 9.0))
    map_ax.set_yticks(range(m), [_short(tree.names[leaf]) for leaf in order], fontsize=size)
    map_ax.tick_params(length=0, pad=4)
    map_ax.spines[:].set_visible(False)
    for label in map_ax.get_yticklabels():
        label.set_parse_math(False)
    if m <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            colour = "black" if value > 0.6 * values.max() else "white"
            map_ax.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=map_ax, location="bottom", aspect=40, pad=0.03)
    bar.set_label("Bhattacharyya distance [nat]", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def distance_label(tree: TaskTree) -> str:
    """How a tree's runs were compared, to follow "distance between runs"."""
    return "at equal progress" if tree.distance == "progress" else "as paths (discrete Fréchet)"


def _draw_line(ax: Any, points: np.ndarray, colour: str, label: str, *, faint: bool) -> None:
    """A run: its first point hollow, its last filled, thin where a mean is drawn over it."""
    style = {"alpha": 0.55, "linewidth": 0.9} if faint else {"linewidth": 1.4}
    ax.plot(*points, color=colour, marker=".", markersize=4.5, label=label, zorder=3, **style)
    ax.plot(*points[:, :1], marker="o", markersize=6, color=colour, markerfacecolor="white", zorder=4)
    ax.plot(*points[:, -1:], marker="o", markersize=6, color=colour, zorder=4)


def points_in_view(points: np.ndarray, runs: np.ndarray) -> int:
    """How many of a path's first points lie near the runs: within 0.6 of their largest extent.

    The truth can lie so far out, above all on weak axes, that a picture with it would show nothing else.
    """
    low, high = runs.min(0), runs.max(0)
    room = 0.6 * float((high - low).max()) + 1e-9
    outside = ((points < low - room) | (points > high + room)).any(1)
    return int(np.argmax(outside)) if outside.any() else len(points)


def steps_grow_by_ratios(steps: Sequence[np.ndarray]) -> bool:
    """Whether snapshots were dense early and sparse late, so that an even axis of steps would crowd most of them."""
    positive = np.concatenate([one[one > 0] for one in steps])
    return bool(len(positive) and positive.max() > 8 * np.median(positive))


def _draw_truth(ax: Any, path: ProjectedPath, axes: Sequence[int], runs: np.ndarray) -> None:
    """The geodesic, with its ends named where they lie: they are no runs, and no legend needs to say so."""
    from matplotlib.patheffects import withStroke

    seen = points_in_view(path.coordinates[:, list(axes)], runs)
    if not seen:
        return
    points, halo = path.coordinates[:seen, list(axes)].T, [withStroke(linewidth=3, foreground="white")]
    ax.plot(*points, color=QUIET, linestyle=(0, (3, 2)), linewidth=1.2, zorder=2)
    whole = seen == len(path.places)
    for end, marker, size, name in (
        (0, "s", 6, "ignorance"),
        (-1, "*" if whole else "", 9, "truth" if whole else "to the truth, far out"),
    ):
        ax.plot(*points[:, [end]], marker=marker, markersize=size, color="#444444", zorder=2)
        style = {"fontsize": 9, "color": "#333333", "zorder": 6, "path_effects": halo}
        if len(axes) == 2:
            ax.annotate(name, points[:, end], xytext=(8, -3), textcoords="offset points", **style)
        else:
            ax.text(*points[:, end], f"  {name}", **style)


def _label_axis(ax: Any, letter: str, embedding: Embedding, axis: int) -> None:
    time_like = embedding.signs[axis] < 0
    label = embedding.axis_label(axis)
    if ax.name == "3d":
        label = label.replace(" of stress", "")  # the title says of what
    getattr(ax, f"set_{letter}label")(label, color="0.4" if time_like else "black")
    if time_like and letter in "xy" and ax.name != "3d":
        for side in ("bottom", "top") if letter == "x" else ("left", "right"):
            ax.spines[side].set(linestyle=(0, (4, 4)), color="0.4")


def _dress_curves(ax: Any, steps: Sequence[np.ndarray], label: str) -> None:
    """Names the axes; steps that grow by ratios get an axis on which they lie evenly."""
    if steps_grow_by_ratios(steps):
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)
        ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="training step", ylabel=label)
    ax.grid(color="#eeeeee", linewidth=0.7)
    ax.set_ylim(-0.02, None)
    ax.spines[["top", "right"]].set_visible(False)


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"


def _legend(ax: Any, **settings: Any) -> None:
    """A legend in which names stand as they are, dollar signs too."""
    for text in ax.legend(frameon=False, fontsize=9, **settings).get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    """A name that leaves room for the picture; matplotlib would leave out a label that begins with an underscore."""
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 16]}…{name[-15:]}"
    return f"\u200b{shown}" if shown.startswith("_") else shown
