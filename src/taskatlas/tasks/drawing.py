"""The room's pictures: scores beside their nulls, how a search went, tasks as grids of samples, what splits do."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taskatlas.probe import Probe
from taskatlas.tasks.agreement import Agreement
from taskatlas.tasks.damage import Damage
from taskatlas.tasks.discovery import Discovered
from taskatlas.tasks.portrait import Portrait
from taskatlas.tasks.similarity import similarity_matrix
from taskatlas.tasks.split import PARTS, Split
from taskatlas.tasks.task import Task

STRONG, WARM, QUIET, GREEN = "#1b6ca8", "#c8553d", "#8a8a8a", "#3f7d20"
_PARTS_COLOURS = (STRONG, WARM, GREEN, "#c9c9c9")
_NULL_COLOURS = {"random": QUIET, "untrained": "#b8860b"}
_LONGEST_NAME = 34  # characters
_MOST_NUMBERS = 12  # tasks, up to which a heat map says its numbers too


def draw_agreements(scores: Sequence[Agreement], ax: Any = None) -> Any:
    """Draws scores with their intervals, the highest on top, over bands of their nulls; returns the axes."""
    ax = _axes(ax, (6.6, 0.34 * len(scores) + 1.7))
    ordered = sorted(scores, key=lambda one: one.agreement)
    for row, one in enumerate(ordered):
        for name, null in one.nulls.items():
            ends = [min(null.values), max(null.values)]
            label = f"{name} labels" if name == "random" else f"{name} network"
            colour = _NULL_COLOURS.get(name, QUIET)
            ax.plot(ends, [row, row], color=colour, linewidth=7, alpha=0.45, solid_capstyle="butt", zorder=1)
            ax.plot(null.agreement, row, "|", color=colour, markersize=11, label=label if row == 0 else None)
        low, high = one.interval
        if np.isfinite(low):
            ax.plot([low, high], [row, row], color=STRONG, linewidth=1.6, zorder=3)
        said = "agreement, 95 % over repeats" if row == 0 else None
        ax.plot(one.agreement, row, "o", color=STRONG, markersize=5, zorder=4, label=said)
    ax.set_yticks(range(len(ordered)), [short(one.task) for one in ordered], fontsize=9)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    ax.set_ylim(-0.7, len(ordered) - 0.3)
    ax.set_xlabel("share of held-out samples on which two networks agree")
    ax.set_title(f"Agreement of {_counted(len(scores), 'task')}", loc="left", fontsize=12)
    ax.grid(axis="x", color="#eeeeee", zorder=0)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _legend_below(ax)
    return ax


def draw_history(found: Discovered, ax: Any = None) -> Any:
    """Draws how a search went over its steps: agreement, fit and similarity, smoothed, with what was seen behind."""
    ax = _axes(ax, (6.2, 3.6))
    steps = np.array([row.step for row in found.history])
    for name, colour in (("agreement", STRONG), ("fit", GREEN), ("similarity", WARM)):
        values = np.array([getattr(row, name) for row in found.history])
        ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        window = min(10, len(values))
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        ax.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.8, label=name)
    ax.set_xlabel("step of the search")
    ax.set_ylabel("share of samples in a batch")
    ax.set_title(f"Search for {_counted(len(found), 'task')}", loc="left", fontsize=12)
    ax.grid(color="#eeeeee")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _legend_below(ax)
    return ax


def draw_similarity(tasks: Sequence[Task], ax: Any = None) -> Any:
    """Draws the similarity of every pair of tasks as a heat map, from unrelated (.5) to the same (1)."""
    m = len(tasks)
    side = float(np.clip(0.42 * m + 1.6, 3.2, 14))
    ax = _axes(ax, (side + 1.5, side))
    values = similarity_matrix(tasks)
    image = ax.imshow(values, cmap="magma", vmin=min(0.5, values.min()), vmax=1)
    names = [short(task.name, 20) for task in tasks]
    ax.set_xticks(range(m), names, rotation=90, fontsize=8)
    ax.set_yticks(range(m), names, fontsize=8)
    if m <= _MOST_NUMBERS:
        for i in range(m):
            for j in range(m):
                colour = "white" if values[i, j] < 0.75 else "black"
                ax.text(
                    j, i, f"{values[i, j]:.2f}".removeprefix("0"), ha="center", va="center", fontsize=7, color=colour
                )
    ax.set_title(f"Similarity of {_counted(m, 'task')}", loc="left", fontsize=12)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("share of samples alike, up to renaming", fontsize=9)
    return ax


def draw_split(split: Split, ax: Any = None) -> Any:
    """Draws each class's share of each part as bars; returns the axes."""
    ax = _axes(ax, (5.6, 3.4))
    manifest = split.manifest()
    shares = manifest["class_shares"]
    width = 0.8 / len(shares)
    for position, (name, values) in enumerate(shares.items()):
        places = np.arange(len(values)) + (position - (len(shares) - 1) / 2) * width
        ax.bar(
            places,
            values,
            width,
            color=_PARTS_COLOURS[PARTS.index(name)],
            label=f"{name} ({manifest['sizes'][name]:,})",
        )
    ax.set_xticks(range(len(next(iter(shares.values())))))
    ax.set_xlabel("class of the target")
    ax.set_ylabel("share of the part")
    ax.set_title(short(split.name, 60), loc="left", fontsize=12, parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    _legend_below(ax)
    return ax


def draw_damage(ranked: Sequence[Damage], ax: Any = None) -> Any:
    """Draws accuracy on each split's test part beside its controls, the most damaging on top; returns the axes."""
    ax = _axes(ax, (7.0, 0.36 * len(ranked) + 1.8))
    for row, one in enumerate(reversed(ranked)):
        for name, colour, mark in (("random split", QUIET, "s"), ("random task", "#b8860b", "D")):
            if name in one.controls:
                ax.plot(
                    one.controls[name].accuracy, row, mark, color=colour, markersize=5, label=name if row == 0 else None
                )
        low, high = one.found.interval
        if np.isfinite(low):
            ax.plot([low, high], [row, row], color=WARM, linewidth=1.6)
        ax.plot(one.found.accuracy, row, "o", color=WARM, markersize=6, label="adversarial split" if row == 0 else None)
    ax.set_yticks(range(len(ranked)), [short(one.split, 44) for one in reversed(ranked)], fontsize=9)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    ax.set_ylim(-0.7, len(ranked) - 0.3)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("accuracy on the test part")
    ax.set_title(
        f"What {_counted(len(ranked), 'split')} {'do' if len(ranked) > 1 else 'does'}", loc="left", fontsize=12
    )
    ax.grid(axis="x", color="#eeeeee")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _legend_below(ax)
    return ax


def draw_portrait(portrait: Portrait, data: Probe, figure: Any = None) -> Any:
    """Draws the surest samples of a task's classes side by side, with what it goes by; returns the figure."""
    import matplotlib.pyplot as plt

    classes = len(portrait.surest)
    if figure is None:
        figure = plt.figure(figsize=(3.1 * classes + 0.4, 3.9), layout="constrained")
    for number, (ax, ids) in enumerate(zip(np.atleast_1d(figure.subplots(1, classes)), portrait.surest, strict=True)):
        draw_samples(data, ids, ax)
        share = f"{100 * portrait.class_rates[number]:.0f} % of samples"
        ax.set_title(f"class {number}: {share}", fontsize=9, loc="left")
    figure.suptitle(portrait_title(portrait), fontsize=10, x=0.02, ha="left", parse_math=False)
    return figure


def portrait_title(portrait: Portrait) -> str:
    """A task's name and score, then what it goes by and what it resembles, in two lines."""
    score = "" if portrait.agreement is None else f": agreement {portrait.agreement.agreement:.3f}"
    told = [f"{name} {value:.2f}" for name, value in list(portrait.goes_by.items())[:3]]
    like = [f"{name} {value:.2f}" for name, value in list(portrait.resembles.items())[:1]]
    second = " · ".join([*(["goes by " + ", ".join(told)] if told else []), *(["like " + like[0]] if like else [])])
    return f"{portrait.task}{score}\n{second}"


def draw_samples(data: Probe, ids: Sequence[str], ax: Any) -> None:
    """Draws samples as a grid of images, or as lines of text."""
    ax.set_axis_off()
    grid = sample_grid(data, ids)
    if grid is not None:
        ax.imshow(grid if grid.shape[-1] == 3 else grid[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        return
    lines = sample_lines(data, ids)
    size = min(8.0, 90 / max(1, len(lines)))
    ax.text(
        0, 1, "\n".join(lines), va="top", fontsize=size, family="monospace", parse_math=False, transform=ax.transAxes
    )


def sample_grid(data: Probe, ids: Sequence[str]) -> np.ndarray | None:
    """Samples as one uint8 picture (height, width, 1 or 3), four or more a row; None where they are no images.

    Rows of numbers whose count is a square up to 32 × 32, such as flattened digits, are taken for grey images.
    """
    from PIL import Image

    place = {name: row for row, name in enumerate(data.ids)}
    samples = [np.asarray(data.inputs[place[name]]) for name in ids if name in place]
    if data.kind == "array":
        side = int(np.sqrt(samples[0].size)) if samples else 0
        if not samples or side * side != samples[0].size or not 4 <= side <= 32:
            return None
        low, high = float(np.min(data.inputs)), float(np.max(data.inputs))
        samples = [
            (255 * (one.reshape(side, side, 1) - low) / max(high - low, 1e-12)).astype(np.uint8) for one in samples
        ]
    elif data.kind != "image" or not samples:
        return None
    side = int(np.clip(max(max(one.shape[:2]) for one in samples), 8, 64))
    tiles = []
    for one in samples:
        picture = Image.fromarray(one[..., :3] if one.shape[-1] >= 3 else one[..., 0])
        picture = picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.BILINEAR)
        tiles.append(np.asarray(picture).reshape(side, side, -1))
    across = max(2, int(np.ceil(np.sqrt(len(tiles)))))
    gap = max(1, side // 16)
    rows = -(-len(tiles) // across)
    grid = np.full((rows * (side + gap) - gap, across * (side + gap) - gap, tiles[0].shape[-1]), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // across) * (side + gap), (number % across) * (side + gap)
        grid[top : top + side, left : left + side] = tile
    return grid


def sample_lines(data: Probe, ids: Sequence[str], width: int = 44) -> list[str]:
    """Samples as lines of text: texts shortened, rows of numbers by their first columns."""
    place = {name: row for row, name in enumerate(data.ids)}
    lines = []
    for name in ids:
        one = data.inputs[place[name]] if name in place else name
        said = " ".join(one.split()) if isinstance(one, str) else " ".join(f"{v:6.2f}" for v in np.ravel(one)[:6])
        lines.append(short(said, width))
    return lines


def short(name: str, most: int = _LONGEST_NAME) -> str:
    """A name, its middle left out where it is long.

    Example:
        >>> short("a" * 50, 5)
        'aa…aa'
    """
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[len(name) - (most - half - 1) :]}"


def _axes(ax: Any, size: tuple[float, float]) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _legend_below(ax: Any) -> None:
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
