"""Aligning networks: an ``Alignment`` for every axis group, from how their units vary together.

Zip joins units within a model too, which is right only where the next layer adds them up: not where a softmax or a norm
runs along them, not for queries and keys, not for whole heads, not for tied weights. There units are permuted.

Heads are compared by what is in them without regard to its order: the squared norm of the covariance of two heads,
over those of each with itself (the RV coefficient; Robert and Escoufier, 1976). Once heads are matched, so is the
inside of those that stand at one place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Integer

from taskatlas.merge.axis_groups import AxisGroups, Group, Site
from taskatlas.merge.covariance import correlation_of
from taskatlas.merge.group_statistics import GroupStatistics
from taskatlas.merge.matching import Alignment, Method, match_features

Likeness = Float[np.ndarray, "units _"]


@dataclass(frozen=True, eq=False)
class NetworkAlignment:
    """How networks were aligned.

    Attributes:
        alignments: by group. Inside a group that has groups within it, they speak of what stands at each place once the
            units of that group have moved.
        agreements: by group, the mean correlation that joined units reach (for heads, of their RV coefficients).
    """

    alignments: Mapping[str, Alignment]
    agreements: Mapping[str, float]


def align(
    groups: AxisGroups,
    statistics: GroupStatistics,
    method: Method = "zip",
    *,
    a: float | int = 0.3,
    b: float | int = 0.125,
    units: Mapping[str, Sequence[int]] | None = None,
) -> NetworkAlignment:
    """Matches the units of n networks, group by group.

    Args:
        groups: of the networks' architecture, all of them or those before a stop.
        statistics: of the networks, by ``gather``.
        method: see ``match_features``; where ``zip`` may not join, it permutes.
        a: see ``match_features``.
        b: see ``match_features``.
        units: for groups in which networks have different numbers of units, how many each has; others come after them
            and are none of the network's.
    """
    work = _Aligning(groups, statistics.models, method, a, b, units or {})
    for group in groups:
        covariances = {
            site: found for site, found in statistics.covariances.get(group.name, {}).items() if site in group.taps
        }
        if covariances:
            work.settle(group, [group] * statistics.models, group, covariances)
    return NetworkAlignment(work.alignments, work.agreements)


def may_be_zipped(group: Group, groups: AxisGroups) -> bool:
    """Whether units may be joined within a model: the next layer adds up each by itself, and nothing else sees them."""
    roles = {member.role for member in group.members}
    blocks = any(member.layout.copies for member in group.members if member.role == "out")
    return (
        group.scalable and "in" in roles and "both" not in roles and not blocks and not has_groups_within(group, groups)
    )


def has_groups_within(group: Group, groups: AxisGroups) -> bool:
    """Whether its units are blocks, such as heads, in which something can be moved."""
    return any(other.within is not None and other.within[0] == group.name for other in groups)


@dataclass(eq=False)
class _Aligning:
    groups: AxisGroups
    models: int
    method: Method
    a: float | int
    b: float | int
    units: Mapping[str, Sequence[int]]
    alignments: dict[str, Alignment] = field(default_factory=dict)
    agreements: dict[str, float] = field(default_factory=dict)

    def settle(
        self, group: Group, standing: Sequence[Group], outermost: Group, covariances: Mapping[Site, np.ndarray]
    ) -> None:
        """Aligns a group and those within it.

        Args:
            group: as it is called in the merged network.
            standing: the group that each model has there, which is another one where heads have moved.
            outermost: the group whose covariances are given.
            covariances: by site.
        """
        likeness = self._likeness(standing, outermost, covariances)
        method = self.method
        if method == "zip" and not may_be_zipped(group, self.groups):
            method = "permute"
        widths = self.units.get(group.name, (group.size,) * self.models)
        present = np.concatenate([start * group.size + np.arange(width) for start, width in enumerate(widths)])
        if len(present) < len(likeness):
            likeness = likeness[np.ix_(present, present)]
        found = match_features(likeness, widths, method, a=self.a, b=self.b)
        self.alignments[group.name] = found
        self.agreements[group.name] = found.agreement(likeness)
        for place in range(group.size if has_groups_within(group, self.groups) else 0):
            units = [int(np.flatnonzero(row == place)[0]) for row in found.places]
            insides = [self._inside(one, unit) for one, unit in zip(standing, units, strict=True)]
            for inner, inner_standing in zip(self._inside(group, place), zip(*insides, strict=True), strict=True):
                self.settle(inner, inner_standing, outermost, covariances)

    def _inside(self, group: Group, unit: int) -> list[Group]:
        return [other for other in self.groups if other.within == (group.name, unit)]

    def _likeness(
        self, standing: Sequence[Group], outermost: Group, covariances: Mapping[Site, np.ndarray]
    ) -> Likeness:
        """Correlations of the models' units, summed over the sites where each unit lies as few times as possible."""
        if standing[0] is outermost and not has_groups_within(outermost, self.groups):
            return _sum([correlation_of(covariance) for covariance in covariances.values()])
        found: dict[int, list[Likeness]] = {}
        for site, covariance in covariances.items():
            where = [_positions(one, site) for one in standing]
            for positions in zip(*where, strict=True):
                span = len(covariance) // self.models
                joined = np.concatenate([start * span + one for start, one in enumerate(positions)])
                found.setdefault(joined.shape[1], []).append(_between_blocks(covariance, joined))
        return _sum(found[min(found)])


def _positions(group: Group, site: Site) -> list[Integer[np.ndarray, "units copies"]]:
    """Where the units of a group lie among the positions of an outer group's site; once for each time they do."""
    outer = site.layout.index().ravel()
    order = np.argsort(outer)
    found = []
    for tap in group.taps:
        if (tap.place, tap.axis) == (site.place, site.axis):
            index = tap.layout.index()
            if np.isin(index, outer).all():
                found.append(order[np.searchsorted(outer, index, sorter=order)])
    return found


def _between_blocks(covariance: np.ndarray, blocks: Integer[np.ndarray, "units copies"]) -> Likeness:
    """Correlations of single positions, or RV coefficients of blocks of them."""
    units, copies = blocks.shape
    part = covariance[np.ix_(blocks.ravel(), blocks.ravel())]
    if copies == 1:
        return correlation_of(part)
    squares = np.square(part).reshape(units, copies, units, copies).sum(axis=(1, 3))
    own = np.sqrt(np.diagonal(squares))
    scale = np.outer(own, own)
    return np.divide(squares, scale, out=np.zeros_like(squares), where=scale > 0)


def _sum(likenesses: Sequence[Likeness]) -> Likeness:
    total = np.zeros_like(likenesses[0])
    for likeness in likenesses:
        total += likeness
    return total
