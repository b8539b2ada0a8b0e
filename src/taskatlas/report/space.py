"""Sections for the room of task spaces: the map, the picks, and what they are worth."""

from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.report.page import Section
from taskatlas.space import Selection, TaskSpace, Transfer
from taskatlas.space.files import SELECTION, SPACE, TRANSFER, read_transfers

_QUIET, _STRONG, _WARM = "#8a8a8a", "#1b6ca8", "#c8553d"
_LAYOUT = {
    "template": "plotly_white",
    "margin": {"l": 10, "r": 10, "t": 40, "b": 40},
    "font": {"family": "system-ui, sans-serif", "size": 13},
}


def space_sections(folder: Path) -> list[Section]:
    """Sections for the results of this room that are in ``folder``, in the order of the work.

    Raises:
        BadInput: a result is damaged.
    """
    sections = []
    selection = Selection.load(folder / SELECTION) if (folder / SELECTION).is_file() else None
    if (folder / SPACE).is_file():
        sections.append(_map_section(TaskSpace.load(folder / SPACE), selection))
    if selection is not None:
        sections.append(_selection_section(selection))
    if (folder / TRANSFER).is_file():
        sections.append(_transfer_section(read_transfers(folder)))
    return sections


def _map_section(space: TaskSpace, selection: Selection | None) -> Section:
    m = len(space)
    off = space.covariance[~np.eye(m, dtype=bool)] if m > 1 else np.zeros(1)
    kernel = space.kernel.replace("_", " ").replace("cka", "CKA")
    text = (
        f"Covariance of the tasks of {m} checkpoints ({kernel}), from {off.min():.2f} to "
        f"{off.max():.2f} with mean {off.mean():.2f}. Bright blocks are checkpoints that arrange the probe alike."
    )
    if selection is not None:
        text += " ★ marks what was selected."
    return Section("Task space", text, [_map_figure(space, selection)])


def _map_figure(space: TaskSpace, selection: Selection | None) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
    from scipy.cluster.hierarchy import dendrogram

    m = len(space)
    figure = make_subplots(cols=2, column_widths=[0.2, 0.8], shared_yaxes=True, horizontal_spacing=0.005)
    leaves = list(range(m))
    if m > 1:
        tree = dendrogram(space.linkage(), no_plot=True)
        leaves = [int(leaf) for leaf in tree["leaves"] or ()]
        for heights, positions in zip(tree["dcoord"], tree["icoord"], strict=True):
            figure.add_trace(
                go.Scatter(
                    x=heights,
                    y=[(position - 5) / 10 for position in positions],
                    mode="lines",
                    line={"color": _QUIET, "width": 1.3},
                    hovertemplate="Ward distance %{x:.2f}<extra></extra>",
                    showlegend=False,
                ),
                col=1,
                row=1,
            )
    picked = set(selection.names) if selection is not None else set()
    names = [space.names[i] for i in leaves]
    labels = [f"★ {name}" if name in picked else name for name in names]
    notes = [[f"{a} – {b}" for b in names] for a in names]
    if space.replicates is not None:
        low, high = (end[np.ix_(leaves, leaves)] for end in space.interval())
        notes = [
            [f"{note}<br>95 % interval {low[i, j]:.3f} to {high[i, j]:.3f}" for j, note in enumerate(row)]
            for i, row in enumerate(notes)
        ]
    figure.add_trace(
        go.Heatmap(
            z=space.covariance[np.ix_(leaves, leaves)].round(4),
            customdata=notes,
            colorscale="Magma",
            zmin=0,
            zmax=1,
            hovertemplate="%{customdata}<br>covariance %{z:.3f}<extra></extra>",
            colorbar={"title": {"text": "covariance", "side": "right"}, "thickness": 12, "x": 1.28},
        ),
        col=2,
        row=1,
    )
    figure.update_layout(**_LAYOUT, height=max(320, 19 * m + 120), title=f"Task space of {m} checkpoints")
    figure.update_yaxes(range=[m - 0.5, -0.5], showgrid=False, zeroline=False, showticklabels=False)
    figure.update_yaxes(tickvals=list(range(m)), ticktext=labels, showticklabels=True, side="right", col=2)
    figure.update_xaxes(title="Ward distance", autorange="reversed", showgrid=False, zeroline=False, col=1)
    figure.update_xaxes(showticklabels=False, col=2)
    return figure


def _selection_section(selection: Selection) -> Section:
    import plotly.graph_objects as go

    unit = "" if selection.method == "facility_location" else " (nats)"
    names = [step.picked for step in selection.steps]
    figure = go.Figure(
        [
            go.Bar(x=names, y=[step.gain for step in selection.steps], name="gain of the step", marker_color="#c9d8e6"),
            go.Scatter(x=names, y=selection.totals, name="total", mode="lines+markers", line={"color": _STRONG}),
        ]
    )
    objective = selection.method.replace("_", " ")
    figure.update_layout(**_LAYOUT, height=380, title="What each pick adds", yaxis_title=f"{objective}{unit}")
    rows = [
        [position, step.picked, step.gain, step.total, step.runner_up, step.margin]
        for position, step in enumerate(selection.steps, start=len(selection.start) + 1)
    ]
    text = f"{len(selection.names)} picked by greedy {objective}."
    if selection.start:
        text += f" Started from {', '.join(selection.start)}."
    if selection.left_out:
        text += " Left out: " + ", ".join(f"{name} ({reason})" for name, reason in selection.left_out.items()) + "."
    return Section("Selection", text, [figure], ["", "picked", "gain", "total", "runner-up", "margin"], rows)


def _transfer_section(transfers: tuple[Transfer, ...]) -> Section:
    import plotly.graph_objects as go

    ordered = sorted(transfers, key=lambda one: len(one.names))
    sizes = [len(one.names) for one in ordered]
    bands = [one.band for one in ordered]
    figure = go.Figure(
        [
            go.Scatter(x=sizes, y=[band[2] for band in bands], mode="lines", line={"width": 0}, showlegend=False),
            go.Scatter(
                x=sizes,
                y=[band[0] for band in bands],
                mode="lines",
                line={"width": 0},
                fill="tonexty",
                fillcolor="rgba(138,138,138,.3)",
                name="random, 5 % to 95 %",
            ),
            go.Scatter(x=sizes, y=[band[1] for band in bands], name="random, median", line={"color": _QUIET}),
            go.Scatter(
                x=sizes,
                y=[one.selected for one in ordered],
                name="selected",
                mode="lines+markers",
                line={"color": _WARM},
                text=[", ".join(one.names) for one in ordered],
            ),
        ]
    )
    metric = ordered[0].metric.replace("_", " ")
    figure.update_layout(
        **_LAYOUT,
        height=400,
        title="Transfer to an unseen task",
        xaxis={"title": "checkpoints picked", "tickvals": sizes},
        yaxis_title=metric,
    )
    last = ordered[-1]
    text = (
        f"A linear head on the joined features of {len(last.names)} picked checkpoints reaches {last.selected:.3f} "
        f"{metric}; {len(last.random)} random selections of the same size have median {last.band[1]:.3f}."
    )
    rows = [[len(one.names), one.selected, *one.band, one.beaten] for one in ordered]
    columns = ["picked", "selected", "random 5 %", "random median", "random 95 %", "share of random beaten"]
    return Section("Transfer", text, [figure], columns, rows)
