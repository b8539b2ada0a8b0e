"""The room's pictures: tree beside heat map, gains of a selection, transfer against chance, growth of the probe."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taskatlas.space.comparison import ProbeGrowth
from taskatlas.space.selection import Selection
from taskatlas.space.task_space import TaskSpace
from taskatlas.space.transfer import Transfer

_CLUSTER_DISTANCE = 0.9  # of Ward's linkage, where the paper's tree changes colour
_CLUSTER_COLOURS = ("#1b6ca8", "#c8553d", "#3f7d20", "#7b4b94", "#b8860b", "#008080", "#a23b72", "#556b2f")
_NEUTRAL = "#8a8a8a"
_LONGEST_NAME = 48  # characters


def draw_space(space: TaskSpace, ax: Any = None) -> Any:
    """Draws the tree joined to the rows of the heat map, each name once, clusters coloured; returns the map's axes."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator
    from scipy.cluster.hierarchy import dendrogram

    m = len(space)
    if ax is None:
        side = float(np.clip(0.2 * m + 1.2, 2.6, 14.0))
        _, ax = plt.subplots(figsize=(side * 1.45, side + 0.9), layout="constrained")
    ax.set_axis_off()
    ax.set_title(f"Task space of {m} checkpoints", loc="left", fontsize=12)
    map_ax = ax.inset_axes((0.245, 0.0, 0.755, 1.0))
    colours, leaves = [_NEUTRAL] * m, list(range(m))
    if m > 1:
        tree_ax = ax.inset_axes((0.0, 0.0, 0.24, 1.0))
        linkage = space.linkage()
        colours, link_colours = _cluster_colours(linkage, m)
        tree = dendrogram(
            linkage, orientation="left", ax=tree_ax, no_labels=True, link_color_func=link_colours.__getitem__
        )
        leaves = [int(leaf) for leaf in tree["leaves"] or ()]
        tree_ax.axvline(_CLUSTER_DISTANCE, color=_NEUTRAL, linewidth=0.7, linestyle=":")
        tree_ax.set_ylim(10 * m, 0)
        tree_ax.set_xlabel("Ward distance", fontsize=9)
        ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, linkage[-1, 2])
        tree_ax.set_xticks([tick for tick in ticks if 0 < tick <= linkage[-1, 2]])
        tree_ax.tick_params(labelsize=8)
        tree_ax.spines[["top", "left", "right"]].set_visible(False)

    values = space.covariance[np.ix_(leaves, leaves)]
    image = map_ax.imshow(values, cmap="magma", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    map_ax.set_xticks([])
    map_ax.yaxis.tick_right()
    size = float(np.clip(300 / max(m, 1), 4.0, 9.0))
    map_ax.set_yticks(range(m), [_short(space.names[i]) for i in leaves], fontsize=size)
    map_ax.tick_params(length=0, pad=4)
    for label, leaf in zip(map_ax.get_yticklabels(), leaves, strict=True):
        label.set(color=colours[leaf], parse_math=False)
    map_ax.spines[:].set_visible(False)
    height = map_ax.bbox.height or 1.0
    bar_ax = map_ax.inset_axes((0.0, -0.22 * ax.figure.dpi / height, 1.0, 0.11 * ax.figure.dpi / height))
    bar = ax.figure.colorbar(image, cax=bar_ax, orientation="horizontal")
    bar.set_label(_kernel_label(space.kernel), fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return map_ax


def draw_selection(selection: Selection, ax: Any = None) -> Any:
    """Draws the running objective as a line over the picks and each step's gain as bars."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(max(4.5, 0.45 * len(selection.steps) + 2), 3.6), layout="constrained")
    x = np.arange(len(selection.steps))
    unit = "" if selection.method == "facility_location" else " (nats)"
    ax.bar(x, [step.gain for step in selection.steps], color="#c9d8e6", label="gain of the step")
    ax.plot(x, selection.totals, "o-", color="#1b6ca8", label="total")
    names = [_short(step.picked) for step in selection.steps]
    ax.set_xticks(x, names, rotation=40, ha="right", fontsize=8, parse_math=False)
    ax.set_ylabel(f"{selection.method.replace('_', ' ')}{unit}")
    ax.set_title("What each pick adds", loc="left", fontsize=12)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def draw_transfer(transfers: Sequence[Transfer], ax: Any = None) -> Any:
    """Draws scores over the number of picks, with the band between the 5 % and 95 % quantile of random selections."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    ordered = sorted(transfers, key=lambda one: len(one.names))
    sizes = [len(one.names) for one in ordered]
    low, median, high = (np.array(values) for values in zip(*(one.band for one in ordered), strict=True))
    chance = "random, 5 % to 95 %"
    if len(sizes) > 1:
        ax.fill_between(sizes, low, high, color="#d9d9d9", label=chance)
        ax.plot(sizes, median, color=_NEUTRAL, label="random, median")
    else:
        ax.errorbar(sizes, median, [median - low, high - median], fmt="s", color=_NEUTRAL, capsize=4, label=chance)
    ax.plot(sizes, [one.selected for one in ordered], "o-", color="#c8553d", label="selected")
    labels = sorted({label for one in ordered for label in one.others})
    for colour, label in zip(_CLUSTER_COLOURS, labels, strict=False):
        points = [(len(one.names), one.others[label]) for one in ordered if label in one.others]
        ax.plot(*zip(*points, strict=True), "^--", color=colour, label=label)
    ax.set_xticks(sizes)
    ax.set_xlabel("checkpoints picked")
    ax.set_ylabel(ordered[0].metric.replace("_", " "))
    ax.set_title("Transfer to an unseen task", loc="left", fontsize=12)
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def draw_growth(growth: ProbeGrowth, ax: Any = None) -> Any:
    """Draws the divergence from the full probe's covariance over the number of samples."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    low, high = growth.divergence.min(axis=1), growth.divergence.max(axis=1)
    ax.fill_between(growth.sizes, low, high, color="#c9d8e6", label="range of repeats")
    ax.plot(growth.sizes, np.median(growth.divergence, axis=1), "o-", color="#1b6ca8", label="median")
    ax.axhline(growth.identity_divergence, color="#c8553d", linestyle="--", label="if all tasks were unrelated")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(growth.sizes, [str(size) for size in growth.sizes])
    ax.set_xlabel("samples in the probe")
    ax.set_ylabel("divergence from the full probe (nats)")
    ax.set_title("How much probe is enough", loc="left", fontsize=12)
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _short(name: str) -> str:
    """A name that leaves room for the picture: its beginning and its end."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 16]}…{name[-15:]}"


def _kernel_label(kernel: str) -> str:
    name = "kernel alignment" if kernel == "unknown" else kernel.replace("_", " ").replace("cka", "CKA")
    return f"covariance ({name})"


def _cluster_colours(linkage: np.ndarray, m: int) -> tuple[list[str], dict[int, str]]:
    """A colour for each leaf and for each link: one a cluster of two or more under the distance, grey above it."""
    from scipy.cluster.hierarchy import fcluster, leaves_list

    cluster = fcluster(linkage, _CLUSTER_DISTANCE, criterion="distance")
    order = list(dict.fromkeys(cluster[leaf] for leaf in leaves_list(linkage) if (cluster == cluster[leaf]).sum() > 1))
    colour_of = {name: _CLUSTER_COLOURS[i % len(_CLUSTER_COLOURS)] for i, name in enumerate(order)}
    leaf_colours = [colour_of.get(name, _NEUTRAL) for name in cluster]
    link_colours: dict[int, str] = {}
    for step, (left, right, height, _) in enumerate(linkage):
        below = [leaf_colours[int(i)] if i < m else link_colours[int(i)] for i in (left, right)]
        link_colours[m + step] = below[0] if height <= _CLUSTER_DISTANCE else _NEUTRAL
    return leaf_colours, link_colours
