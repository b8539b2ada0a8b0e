"""Section for the room of merging: how models score on tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskatlas.merge.scores import EVALUATION, INDIVIDUAL, Evaluation, Heads
from taskatlas.report.page import LAYOUT, Section

_HEADS: Mapping[Heads, str] = {
    "known": "heads known: only the classes of the task compete",
    "inferred": "heads inferred: the classes of all tasks compete",
}


def merge_sections(folder: Path) -> list[Section]:
    """The section for what ``taskatlas evaluate`` left in ``folder``, if it left anything.

    Raises:
        BadInput: the file is damaged.
    """
    if not (folder / EVALUATION).is_file():
        return []
    found = Evaluation.load(folder / EVALUATION)
    rows = found.rows()
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [[str(row[name]) if isinstance(row[name], tuple) else row[name] for name in columns] for row in rows]
    figures = [_figure(found, heads) for heads in _HEADS if found.models(heads)]
    return [Section("Accuracy on tasks", _text(found), figures, columns, cells, folder / EVALUATION)]


def _text(found: Evaluation) -> str:
    count = f"{len(found.models())} models on {len(found.tasks)} task{'s' if len(found.tasks) > 1 else ''}"
    text = f"Share of right answers of {count}, ± its standard error."
    if found.unlisted:
        text += f" Which outputs belong to {', '.join(found.unlisted)} is not known, so there all of them compete."
    merged = [name for name in found.models("known") if name != INDIVIDUAL]
    if merged and found.ratio(merged[0]) is not None:
        best = max(merged, key=lambda name: found.average(name).value)
        text += f" {best} comes nearest to the networks that were each trained for one task: {found.ratio(best):.1%}"
        text += " of their average, heads known."
    return text


def _figure(found: Evaluation, heads: Heads) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for model in found.models(heads):
        estimates = [found.accuracy(model, task, heads) for task in found.tasks]
        figure.add_bar(
            name=model,
            x=list(found.tasks),
            y=[one.value for one in estimates],
            error_y={"array": [one.error for one in estimates], "thickness": 1, "width": 2},
            hovertemplate=f"{model}, %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(LAYOUT, title=f"Accuracy, {_HEADS[heads]}; bars: standard error", barmode="group")
    figure.update_layout(showlegend=True)
    figure.update_yaxes(range=[0, 1], title="accuracy")
    return figure
