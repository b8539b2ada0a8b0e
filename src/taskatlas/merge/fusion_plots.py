"""Pictures of merging coefficients: by task, by layer, and while they were learned."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from taskatlas.errors import BadInput

Picture = Literal["tasks", "layers", "learning"]

_MANY = 12  # lines of a picture that still have a legend


def plot_by_task(
    coefficients: Float[np.ndarray, "K N"], tasks: Sequence[str], experts: Sequence[str], note: str = "", ax: Any = None
) -> Any:
    """A heat map of the mean coefficient that each task's samples give to each expert; returns the axes."""
    size = 1.6 + 0.55 * len(experts), 1.4 + 0.45 * len(tasks)
    ax = _axes(size) if ax is None else ax
    image = _heat(ax, coefficients)
    ax.figure.colorbar(image, ax=ax, label="mean coefficient λ")
    for row, column in np.ndindex(coefficients.shape):
        value = coefficients[row, column]
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.set_xticks(range(len(experts)), experts, rotation=45, ha="right")
    ax.set_yticks(range(len(tasks)), tasks)
    ax.set(xlabel="expert", ylabel="samples of task", title=_title("Coefficients by task", note))
    return ax


def plot_by_layer(
    coefficients: Float[np.ndarray, "N T"],
    dead: Bool[np.ndarray, "N T"],
    experts: Sequence[str],
    tensors: Sequence[str],
    note: str = "",
    ax: Any = None,
) -> Any:
    """A heat map of each expert's coefficient in each tensor, dead ones grey; returns the axes."""
    ax = _axes((9.0, 1.6 + 0.4 * len(experts))) if ax is None else ax
    image = _heat(ax, np.where(dead, np.nan, coefficients), aspect="auto")
    ax.set_facecolor("0.6")
    ax.figure.colorbar(image, ax=ax, label="coefficient λ\n(grey: dead)")
    ax.set_yticks(range(len(experts)), experts)
    shown = np.unique(np.linspace(0, len(tensors) - 1, min(8, len(tensors))).round().astype(int))
    ax.set_xticks(shown, [_short(tensors[place]) for place in shown], rotation=20, ha="right", fontsize=7)
    ax.set(xlabel="tensor, in the network's order", ylabel="expert", title=_title("Coefficients by layer", note))
    return ax


def plot_learning(
    path: Float[np.ndarray, "S K N"], tasks: Sequence[str], experts: Sequence[str], note: str = "", ax: Any = None
) -> Any:
    """The mean coefficient of every task's own expert over steps, and of the others' together; returns the axes."""
    ax = _axes((8.0, 4.0)) if ax is None else ax
    for k, task in enumerate(tasks):
        own = experts.index(task) if task in experts else None
        colour = f"C{k % 10}"
        others = [i for i in range(len(experts)) if i != own]
        label = task if len(tasks) <= _MANY else None
        if own is not None:
            ax.plot(path[:, k, own], color=colour, label=label)
        if others:
            ax.plot(path[:, k, others].mean(1), color=colour, linestyle=":", label=label if own is None else None)
    ax.set(xlabel="step", ylabel="mean coefficient λ", title=_title("Coefficients while learning", note))
    if len(tasks) <= _MANY:
        title = "task: its own expert\n(dotted: mean of the others)"
        ax.legend(title=title, title_fontsize=8, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def check_picture(picture: str, level: str, learned: bool, tasks: Sequence[str], task: str | None) -> None:
    """Refuses a picture that cannot be drawn.

    Raises:
        BadInput: an unknown name or task, layers of task-wise coefficients, learning that was not done here, no tasks.
    """
    if picture not in ("tasks", "layers", "learning"):
        raise BadInput(f"there is no picture {picture!r}. Choose tasks, layers or learning.")
    if picture == "layers" and level != "layer":
        raise BadInput("task-wise coefficients are the same in every layer. Choose the picture tasks.")
    if picture == "learning" and not learned:
        raise BadInput("this hypernetwork was not trained here, so there is no learning to draw.")
    if not tasks:
        raise BadInput("this hypernetwork has seen no task's samples here, so there are no coefficients to draw.")
    if task is not None and task not in tasks:
        raise BadInput(f"there is no task {task!r} to draw; there are {', '.join(tasks)}.")


def _axes(size: tuple[float, float]) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def _heat(ax: Any, values: np.ndarray, aspect: str = "equal") -> Any:
    """Colours that part at 0, so that an expert that is taken away looks unlike one that is added."""
    from matplotlib.colors import TwoSlopeNorm

    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low >= 0:
        return ax.imshow(values, aspect=aspect, cmap="viridis", vmin=0, vmax=max(high, 1e-9), interpolation="nearest")
    norm = TwoSlopeNorm(0, min(low, -1e-9), max(high, 1e-9))
    return ax.imshow(values, aspect=aspect, cmap="RdBu_r", norm=norm, interpolation="nearest")


def _title(what: str, note: str) -> str:
    return f"{what} ({note})" if note else what


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"…{name[-most + 1 :]}"
