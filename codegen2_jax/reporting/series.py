"""Groups of runs that differ in one number alone: the size of the replay buffer, or how many tasks there are."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from codegen2_jax.reporting import settings
from codegen2_jax.reporting.finished_runs import Group, scored_split
from codegen2_jax.reporting.tables import Column, Table, final_average, forget_paper_of


@dataclasses.dataclass(frozen=True)
class Series:
    """One method at several values of a number; points ascend in it."""

    name: str
    points: tuple[tuple[int, Group], ...]

def by_buffer(groups: Sequence[Group]) -> list[Series]:
    """The methods of one stream that were run with several sizes of the replay buffer and nothing else changed."""

    def rest(group: Group) -> list:
        return [group.method, sorted(group.tasks), *map(settings.without_buffer, group.settings)]

    sized = [group for group in groups if isinstance(_size(group), int)]
    found = _series(sized, _size, rest)
    methods = [points[0][1].method for points in found]
    series = []
    for method, points in zip(methods, found, strict=True):
        same = [other for other in found if other[0][1].method == method]
        labels = settings.labels([tuple(map(settings.without_buffer, other[0][1].settings)) for other in same])
        if labels:
            method = f"{method}, {labels[same.index(points)]}"
        elif len(same) > 1:
            method = f"{method} ({points[0][1].runs[0].directory.resolve().name} and others)"
        series.append(Series(method, points))
    return series


def by_tasks(groups: Sequence[Group]) -> list[Series]:
    """The methods that were run on streams of different length and nothing else changed."""
    found = _series(groups, lambda group: len(group.tasks), lambda group: [group.method, *group.settings])
    return [Series(points[-1][1].name, points) for points in found]


def _size(group: Group) -> Any:
    return group.settings[0].get(settings.BUFFER)


def _series(
    groups: Sequence[Group], number: Callable[[Group], int], rest: Callable[[Group], list]
) -> list[tuple[tuple[int, Group], ...]]:
    """The points of each series: groups that agree in `rest`, where they have several numbers."""
    found = [
        tuple(sorted(((number(group), group) for group in alike), key=lambda point: point[0]))
        for alike in settings.gathered(groups, rest)
    ]
    return [points for points in found if points[0][0] < points[-1][0]]


def table(series: Sequence[Series], heading: str) -> Table:
    """A row per point: what was varied, the average at the end and forget_paper, both over seeds.

    series: of one metric.
    """
    groups = [group for one in series for _, group in one.points]
    split, metric = scored_split(groups), groups[0].metric
    columns = [
        Column("method"),
        Column(heading),
        Column(f"average_{metric}", split, f"average_{metric} ({split})"),
        Column(f"forget_paper_{metric}", "valid", f"forget_paper_{metric} (valid)"),
        Column("runs"),
    ]
    rows = [
        [one.name, number, final_average(group, split), forget_paper_of(group), len(group.runs)]
        for one in series
        for number, group in one.points
    ]
    return Table(columns, rows)
