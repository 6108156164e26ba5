"""What the runs of a study say together: means over seeds with intervals, and paired differences between routers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from poise.training.study_plan import Cell, StudyPlan

Run = Mapping[str, Any]
# fmt: off
# 97.5 % quantiles of Student's t by degrees of freedom; from 30 on the normal one is near enough.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)
# fmt: on

IMAGE_FAILS, TAGS_FAIL = "image fails (mean)", "tags fail (mean)"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % interval (Student's t; infinite for a single seed)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        if len(values) < 2:
            return cls(mean(values), math.inf)
        quantile = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 1.96
        return cls(mean(values), quantile * stdev(values) / math.sqrt(len(values)))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        width = "" if math.isinf(self.half_width) else f" ± {self.half_width:.2f}".replace("0.", ".")
        return f"{self.mean:.2f}".replace("0.", ".") + width


def cell_of(run: Run) -> Cell:
    return Cell(run["router"], run["prompt"], run["language_model"], run["training"])


def scores(plan: StudyPlan) -> dict[str, Callable[[Run], float]]:
    """Accuracy by condition, and the means over the conditions in which picture or tags fail."""

    def accuracy(name: str) -> Callable[[Run], float]:
        return lambda run: run["conditions"][name]["accuracy"]

    def average(stream: str) -> Callable[[Run], float]:
        names = [condition.name for condition in plan.conditions if condition.stream == stream]
        return lambda run: mean(run["conditions"][name]["accuracy"] for name in names)

    found = {condition.name: accuracy(condition.name) for condition in plan.conditions}
    for stream, title in (("image", IMAGE_FAILS), ("tags", TAGS_FAIL)):
        if any(condition.stream == stream for condition in plan.conditions):
            found[title] = average(stream)
    return found


def estimates(runs: Sequence[Run], score: Callable[[Run], float]) -> dict[Cell, Estimate]:
    """Mean of a score over the seeds of every cell."""
    values: dict[Cell, list[float]] = {}
    for run in runs:
        values.setdefault(cell_of(run), []).append(score(run))
    return {cell: Estimate.of(found) for cell, found in values.items()}


def gains(runs: Sequence[Run], score: Callable[[Run], float]) -> dict[Cell, Estimate]:
    """What a router adds to the same model without one, as differences paired by seed."""
    by_key = {(cell_of(run), run["seed"]): score(run) for run in runs}
    differences: dict[Cell, list[float]] = {}
    for (cell, seed), value in by_key.items():
        without = (Cell("none", cell.prompt, cell.language_model, cell.training), seed)
        if cell.router != "none" and without in by_key:
            differences.setdefault(cell, []).append(value - by_key[without])
    return {cell: Estimate.of(found) for cell, found in differences.items()}


def judging(runs: Sequence[Run], score: Callable[[Run], float]) -> dict[Cell, Estimate]:
    """What a reliability router's verdicts add to the same trained model that trusts everything, paired by seed."""
    differences: dict[Cell, list[float]] = {}
    for run in runs:
        if run["held_open"]:
            trusting = {**run, "conditions": run["held_open"]}
            differences.setdefault(cell_of(run), []).append(score(run) - score(trusting))
    return {cell: Estimate.of(found) for cell, found in differences.items()}
