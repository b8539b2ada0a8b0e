"""Sections for the room of tasks: agreement beside its nulls, what the discovered tasks are, what splits do."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.errors import BadInput
from taskatlas.report.page import Section
from taskatlas.tasks.agreement import Agreement
from taskatlas.tasks.damage import Damage
from taskatlas.tasks.drawing import GREEN, QUIET, STRONG, WARM, short
from taskatlas.tasks.files import (
    AGREEMENT,
    DAMAGE,
    DISCOVERY,
    PORTRAITS,
    agreement_table,
    damage_table,
    read_agreements,
    read_damage,
    read_discovered,
)
from taskatlas.tasks.similarity import similarity_matrix

_NULL_COLOURS = {"random": QUIET, "untrained": "#b8860b"}
_LAYOUT = {
    "template": "plotly_white",
    "margin": {"l": 10, "r": 10, "t": 50, "b": 40},
    "font": {"family": "system-ui, sans-serif", "size": 13},
}


def tasks_sections(folder: Path) -> list[Section]:
    """Sections for the results of this room that are in ``folder``, in the order of the work.

    Raises:
        BadInput: a result is damaged.
    """
    sections = []
    if (folder / DISCOVERY).is_file():
        sections += _discovery_sections(folder)
    if (folder / AGREEMENT).is_file():
        sections.append(_agreement_section(read_agreements(folder), folder / AGREEMENT))
    if (folder / DAMAGE).is_file():
        sections.append(_damage_section(read_damage(folder), folder / DAMAGE))
    return sections


def _discovery_sections(folder: Path) -> list[Section]:
    found = read_discovered(folder)
    alike = similarity_matrix(found.tasks)
    pairs = alike[np.triu_indices(len(found), 1)]
    text = (
        f"{len(found)} tasks of {len(found.embedding):,} samples, found without labels by {found.settings['learner']}."
    )
    if len(pairs):
        text += f" Similarity of pairs: mean {pairs.mean():.3f}, largest {pairs.max():.3f} (.5 is unrelated)."
    text += "".join(f" {note[:1].upper()}{note[1:]}." for note in found.notes)
    figures = [_history_figure(found.history), *([_similarity_figure(alike, found)] if len(pairs) else [])]
    sections = [Section("Discovered tasks", text, figures, source=folder / DISCOVERY)]
    if (folder / PORTRAITS).is_file():
        sections.append(_portraits_section(folder))
    return sections


def _history_figure(history: Sequence[Any]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    steps = [row.step for row in history]
    for name, colour in (("agreement", STRONG), ("fit", GREEN), ("similarity", WARM)):
        values = [None if np.isnan(getattr(row, name)) else round(getattr(row, name), 4) for row in history]
        figure.add_scatter(x=steps, y=values, mode="lines", name=name, line={"color": colour})
    figure.update_layout(
        **_LAYOUT, height=340, title="The search", xaxis_title="step", yaxis_title="share of samples in a batch"
    )
    return figure


def _similarity_figure(alike: np.ndarray, found: Any) -> Any:
    import plotly.graph_objects as go

    names = [escape(short(task.name, 24), quote=False) for task in found.tasks]
    heat = go.Heatmap(
        z=alike.round(4),
        x=names,
        y=names,
        colorscale="Magma",
        zmin=0.5,
        zmax=1,
        texttemplate="%{z:.2f}" if len(names) <= 12 else None,
        hovertemplate="%{y} – %{x}<br>similarity %{z:.3f}<extra></extra>",
        colorbar={"title": {"text": "similarity"}, "outlinewidth": 0},
    )
    figure = go.Figure(heat)
    figure.update_layout(**_LAYOUT, height=30 * len(names) + 220, title="Similarity, up to renaming classes")
    figure.update_yaxes(autorange="reversed")
    return figure


def _portraits_section(folder: Path) -> Section:
    """A row of words and a picture for each task."""
    path = folder / PORTRAITS
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        table = [
            [
                row["task"],
                float(min(row["class_rates"])),
                ", ".join(f"{name} {value:.2f}" for name, value in list(row["goes_by"].items())[:4]),
                ", ".join(f"{name} {value:.2f}" for name, value in list(row["resembles"].items())[:2]),
            ]
            for row in rows
        ]
        figures = [
            _picture(folder / f"task-{number}.png", row["task"])
            for number, row in enumerate(rows)
            if (folder / f"task-{number}.png").is_file()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path} holds no portraits that can be read ({error}). Run `taskatlas discover` again."
        ) from error
    text = (
        "For each task the samples that it is surest of, class beside class; the correlation ratio with what can be "
        "measured of a sample, and known tasks that it resembles."
    )
    return Section("What is this task?", text, figures, ["task", "smallest class", "goes by", "like"], table, path)


def _picture(path: Path, name: str) -> Any:
    """A PNG as a figure, so that the page stays one file."""
    import plotly.graph_objects as go
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
    encoded = base64.b64encode(path.read_bytes()).decode()
    figure = go.Figure(go.Image(source=f"data:image/png;base64,{encoded}", hoverinfo="skip"))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 0}, height=min(520, round(900 * height / width)), meta={"task": name}
    )
    return figure


def _agreement_section(scores: Sequence[Agreement], source: Path) -> Section:
    import plotly.graph_objects as go

    ordered = sorted(scores, key=lambda one: one.agreement)
    names = [escape(short(one.task), quote=False) for one in ordered]
    figure = go.Figure()
    for name in dict.fromkeys(null for one in scores for null in one.nulls):
        known = [(label, one.nulls[name]) for label, one in zip(names, ordered, strict=True) if name in one.nulls]
        figure.add_scatter(
            x=[null.agreement for _, null in known],
            y=[label for label, _ in known],
            mode="markers",
            name=f"{name} {'labels' if name == 'random' else 'network'}",
            marker={"color": _NULL_COLOURS.get(name, QUIET), "symbol": "line-ns-open", "size": 12},
            error_x=_ends([(null.agreement, min(null.values), max(null.values)) for _, null in known]),
        )
    figure.add_scatter(
        x=[one.agreement for one in ordered],
        y=names,
        mode="markers",
        name="agreement, 95 % over repeats",
        marker={"color": STRONG, "size": 8},
        error_x=_ends([(one.agreement, *one.interval) for one in ordered]),
    )
    figure.update_layout(
        **_LAYOUT,
        height=26 * len(names) + 190,
        title="Agreement of networks that were trained apart",
        xaxis_title="share of held-out samples on which two networks agree",
    )
    text = (
        f"{len(scores)} tasks, {scores[0].held_out:,} samples that no network saw. What counts is the lift over the "
        "nulls: networks agree on much that nobody taught them."
    )
    columns, rows = agreement_table(scores)
    kept = [position for position, column in enumerate(columns) if column != "soft"]
    return Section(
        "Agreement",
        text,
        [figure],
        [columns[position].replace("_", " ") for position in kept],
        [[row[position] for position in kept] for row in rows],
        source,
    )


def _damage_section(ranked: Sequence[Damage], source: Path) -> Section:
    import plotly.graph_objects as go

    names = [escape(short(one.split, 44), quote=False) for one in ranked]
    figure = go.Figure()
    for name, colour, symbol in (("random split", QUIET, "square"), ("random task", "#b8860b", "diamond")):
        known = [(label, one.controls[name]) for label, one in zip(names, ranked, strict=True) if name in one.controls]
        figure.add_scatter(
            x=[fall.accuracy for _, fall in known],
            y=[label for label, _ in known],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 8},
        )
    figure.add_scatter(
        x=[one.found.accuracy for one in ranked],
        y=names,
        mode="markers",
        name="adversarial split, 95 % over repeats",
        marker={"color": WARM, "size": 10},
        error_x=_ends([(one.found.accuracy, *one.found.interval) for one in ranked]),
    )
    figure.update_layout(
        **_LAYOUT,
        height=28 * len(names) + 190,
        title="Accuracy on the test part",
        xaxis={"title": "accuracy", "range": [-0.02, 1.02]},
        yaxis={"autorange": "reversed"},
    )
    worst = ranked[0]
    text = f"The worst of {len(ranked)} splits brings a network to {worst.found.accuracy:.3f} on its test part"
    if "random split" in worst.controls:
        text += f", where a random split of the same size leaves {worst.controls['random split'].accuracy:.3f}"
    text += f". No sample and no label was changed. {_said_of_easier(worst)}"
    return Section("Splits", text, [figure], *damage_table(ranked), source)


def _said_of_easier(one: Damage) -> str:
    """How like the target the task of a split is, and how well networks agree about it, as far as that is known."""
    easy = one.easier
    if np.isnan(easy.similarity):
        return ""
    said = f"Up to polarity, its task is the target in {100 * easy.similarity:.1f} % of the samples (similarity)"
    if not np.isnan(easy.agreement):
        said += f"; networks trained on that task agree about {100 * easy.agreement:.1f} % of unseen ones (agreement)"
    if not np.isnan(easy.lift):
        said += f", a lift of {easy.lift:+.3f} over the highest null"
    return f"{said}."


def _ends(points: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Error bars from values with their lower and upper ends; none where these are not known."""
    ends = np.nan_to_num(np.array([[high - value, value - low] for value, low, high in points]).reshape(-1, 2))
    return {"type": "data", "symmetric": False, "array": ends[:, 0].tolist(), "arrayminus": ends[:, 1].tolist()}
