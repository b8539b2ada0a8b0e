"""Sections for the room of task spaces: the map, the picks, and what they are worth."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.report.page import LAYOUT, Section
from taskatlas.space import Selection, TaskSpace, Transfer
from taskatlas.space.files import SELECTION, SPACE, TRANSFER, read_transfers

_QUIET, _STRONG, _WARM = "#8a8a8a", "#1b6ca8", "#c8553d"
_CLUSTER_DISTANCE = 0.9  # of Ward's linkage, where the paper's tree changes colour
_CLUSTER_COLOURS = ("#1b6ca8", "#c8553d", "#3f7d20", "#7b4b94", "#b8860b", "#008080", "#a23b72", "#556b2f")
_LONGEST_LABEL = 44  # letters; the tables and what hovers over a figure have the whole name


def space_sections(folder: Path) -> list[Section]:
    """Sections for the results of this room that are in ``folder``, in the order of the work.

    Raises:
        BadInput: a result is damaged.
    """
    sections = []
    space = TaskSpace.load(folder / SPACE) if (folder / SPACE).is_file() else None
    selection = Selection.load(folder / SELECTION) if (folder / SELECTION).is_file() else None
    stale = space is not None and selection is not None and selection.space not in ("", space.digest)
    if space is not None:
        sections.append(_map_section(space, None if stale else selection, folder / SPACE))
    if selection is not None:
        sections.append(_selection_section(selection, stale, folder / SELECTION))
    if (folder / TRANSFER).is_file():
        sections.append(_transfer_section(read_transfers(folder), folder / TRANSFER))
    return sections


def _map_section(space: TaskSpace, selection: Selection | None, source: Path) -> Section:
    m = len(space)
    text = f"Covariance of the tasks of {m} checkpoints ({_kernel_label(space.kernel)})"
    if m > 1:
        off = space.covariance[~np.eye(m, dtype=bool)]
        text += f", from {off.min():.2f} to {off.max():.2f} with mean {off.mean():.2f}"
    text += ". Bright blocks are checkpoints that arrange the probe alike."
    if selection is not None:
        text += " ★ marks what was selected."
    picked = frozenset() if selection is None else frozenset(selection.names)
    return Section("Task space", text, [_map_figure(space, picked)], source=source)


def _map_figure(space: TaskSpace, picked: frozenset[str]) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
    from scipy.cluster.hierarchy import dendrogram

    m = len(space)
    figure = make_subplots(cols=2, column_widths=[0.2, 0.8], shared_yaxes=True, horizontal_spacing=0.005)
    leaves, colours = list(range(m)), ["C0"] * m
    if m > 1:
        tree = dendrogram(space.linkage(), no_plot=True, color_threshold=_CLUSTER_DISTANCE)
        leaves, colours = [int(leaf) for leaf in tree["leaves"] or ()], list(tree["leaves_color_list"])
        for heights, positions, colour in zip(tree["dcoord"], tree["icoord"], tree["color_list"], strict=True):
            figure.add_trace(
                go.Scatter(
                    x=heights,
                    y=[(position - 5) / 10 for position in positions],
                    mode="lines",
                    line={"color": _cluster_colour(colour), "width": 1.3},
                    hovertemplate="Ward distance %{x:.2f}<extra></extra>",
                    showlegend=False,
                ),
                col=1,
                row=1,
            )
    names = [space.names[i] for i in leaves]
    figure.add_trace(
        go.Heatmap(
            z=space.covariance[np.ix_(leaves, leaves)].round(4),
            customdata=_notes(space, leaves, names),
            colorscale="Magma",
            zmin=0,
            zmax=1,
            hovertemplate="%{customdata}<br>covariance %{z:.3f}<extra></extra>",
            colorbar={
                "title": {"text": f"covariance ({_kernel_label(space.kernel)})", "side": "bottom"},
                "orientation": "h",
                "thickness": 12,
                "outlinewidth": 0,
                "x": 0.6,
                "len": 0.8,
                "y": 0,
                "yanchor": "top",
            },
        ),
        col=2,
        row=1,
    )
    labels = [
        f'<span style="color:{_cluster_colour(colour)}">{"★ " if name in picked else ""}{_label(name)}</span>'
        for name, colour in zip(names, colours, strict=True)
    ]
    figure.update_layout(**LAYOUT, height=max(320, 19 * m + 160), title=f"Task space of {m} checkpoints")
    figure.update_yaxes(range=[m - 0.5, -0.5], showgrid=False, zeroline=False, showticklabels=False)
    figure.update_yaxes(
        tickvals=list(range(m)), ticktext=labels, showticklabels=True, side="right", ticklabelstandoff=6, col=2
    )
    figure.update_xaxes(title="Ward distance", autorange="reversed", showgrid=False, zeroline=False, col=1)
    figure.update_xaxes(showticklabels=False, col=2)
    return figure


def _notes(space: TaskSpace, leaves: Sequence[int], names: Sequence[str]) -> list[list[str]]:
    """What each cell of the map says of its pair, above the value."""
    pairs = [[f"{_plain(a)} – {_plain(b)}" for b in names] for a in names]
    if space.replicates is None:
        return pairs
    low, high = (end[np.ix_(leaves, leaves)] for end in space.interval())
    return [
        [f"{pair}<br>95 % interval {low[i, j]:.3f} to {high[i, j]:.3f}" for j, pair in enumerate(row)]
        for i, row in enumerate(pairs)
    ]


def _selection_section(selection: Selection, stale: bool, source: Path) -> Section:
    unit = "" if selection.method == "facility_location" else " (nats)"
    objective = selection.method.replace("_", " ")
    positions = list(range(len(selection.start) + 1, len(selection.names) + 1))
    rows = [
        [position, step.picked, step.gain, step.total, step.runner_up, step.margin]
        for position, step in zip(positions, selection.steps, strict=True)
    ]
    text = f"{len(selection.names)} picked by greedy {objective}."
    if selection.start:
        text += f" Started from {', '.join(selection.start)}."
    if selection.left_out:
        text += " Left out: " + ", ".join(f"{name} ({reason})" for name, reason in selection.left_out.items()) + "."
    if stale:
        text += " It was made from another task space than the one above: run taskatlas select again."
    columns = ["", "picked", f"gain{unit}", f"total{unit}", "runner-up", "margin"]
    figures = [_selection_figure(selection, positions, f"{objective}{unit}")] if rows else []
    return Section("Selection", text, figures, columns, rows, source)


def _selection_figure(selection: Selection, positions: Sequence[int], worth: str) -> Any:
    import plotly.graph_objects as go

    names = [_plain(step.picked) for step in selection.steps]
    gains = [step.gain for step in selection.steps]
    figure = go.Figure()
    figure.add_bar(
        x=gains, y=positions, orientation="h", hovertext=names, name="gain of the step", marker_color="#c9d8e6"
    )
    figure.add_scatter(
        x=selection.totals, y=positions, hovertext=names, name="total", mode="lines+markers", line={"color": _STRONG}
    )
    figure.update_layout(
        **LAYOUT,
        height=22 * len(positions) + 170,
        title="What each pick adds",
        xaxis={"title": worth, "rangemode": "tozero"},
        yaxis={
            "tickvals": positions,
            "ticktext": [_label(step.picked) for step in selection.steps],
            "ticklabelstandoff": 6,
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
        },
    )
    return figure


def _transfer_section(transfers: tuple[Transfer, ...], source: Path) -> Section:
    ordered = sorted(transfers, key=lambda one: len(one.names))
    metric, last = ordered[0].metric.replace("_", " "), ordered[-1]
    text = (
        f"A linear head on the joined features of {len(last.names)} picked checkpoints reaches {last.selected:.3f} "
        f"{metric}; {len(last.random)} random selections of the same size have median {last.band[1]:.3f}."
    )
    others = sorted({label for one in ordered for label in one.others})
    rows = [
        [len(one.names), one.selected, *one.band, one.beaten, *(one.others.get(label) for label in others)]
        for one in ordered
    ]
    columns = ["picked", "selected", "random 5 %", "random median", "random 95 %", "share of random beaten", *others]
    return Section("Transfer", text, [_transfer_figure(ordered, others, metric)], columns, rows, source)


def _transfer_figure(ordered: Sequence[Transfer], others: Sequence[str], metric: str) -> Any:
    import plotly.graph_objects as go

    sizes = [len(one.names) for one in ordered]
    low, median, high = (list(ends) for ends in zip(*(one.band for one in ordered), strict=True))
    figure = go.Figure()
    if len(sizes) > 1:
        figure.add_scatter(x=sizes, y=high, mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
        figure.add_scatter(
            x=sizes,
            y=low,
            mode="lines",
            line={"width": 0},
            fill="tonexty",
            fillcolor="rgba(138,138,138,.3)",
            name="random, 5 % to 95 %",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=sizes,
        y=median,
        name="random, median",
        mode="lines+markers",
        line={"color": _QUIET},
        error_y={  # where there is one size a band has no width
            "visible": len(sizes) == 1,
            "array": [end - middle for end, middle in zip(high, median, strict=True)],
            "arrayminus": [middle - end for end, middle in zip(low, median, strict=True)],
        },
    )
    for colour, label in zip(_CLUSTER_COLOURS[2:], others, strict=False):
        points = [(len(one.names), one.others[label]) for one in ordered if label in one.others]
        x, y = zip(*points, strict=True)
        figure.add_scatter(x=x, y=y, name=_label(label), mode="lines+markers", line={"color": colour, "dash": "dash"})
    figure.add_scatter(
        x=sizes,
        y=[one.selected for one in ordered],
        name="selected",
        mode="lines+markers",
        line={"color": _WARM},
        hovertext=[_plain(", ".join(one.names)) for one in ordered],
    )
    figure.update_layout(
        **LAYOUT,
        height=400,
        title="Transfer to an unseen task",
        xaxis={"title": "checkpoints picked", "tickvals": sizes},
        yaxis_title=metric,
    )
    return figure


def _kernel_label(kernel: str) -> str:
    return "kernel alignment" if kernel == "unknown" else kernel.replace("_", " ").replace("cka", "CKA")


def _cluster_colour(name: str) -> str:
    """The colour for a name that scipy gives: C0 above the clusters' distance, C1, C2, … a cluster each."""
    number = int(name.removeprefix("C"))
    return _CLUSTER_COLOURS[(number - 1) % len(_CLUSTER_COLOURS)] if number else _QUIET


def _label(name: str) -> str:
    """A name for an axis or a legend, its middle left out where it is long."""
    half = _LONGEST_LABEL // 2
    return _plain(name if len(name) <= _LONGEST_LABEL else f"{name[:half]}…{name[-half + 1 :]}")


def _plain(name: str) -> str:
    """A name that plotly shows as it is: it takes a few tags of HTML for mark-up."""
    return escape(name, quote=False)
