"""Robustness: the same questions while the image, the tags or the question are damaged, in five severities."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...processing.degradations.degradations import (
    DEGRADATION_STREAMS,
    SEVERITIES,
    check_degradation,
    degradations_named,
)
from ..evaluator import Record, Row
from ..generation_evaluator import GenerationEvaluator
from ..intervals import estimate, mean_of
from ..task_scores import TaskScorer, primary_score
from .degraded_records import CLEAN, DegradedRecords


@dataclass(eq=False)
class RobustnessEvaluator(GenerationEvaluator):
    """Asks every record as it is and in every degradation and severity.

    With `d` a degradation and `s` a severity, the result holds, each with `_low` and `_high`:

    * `clean`, `d_s`: mean score of the samples; `d_s_relative`: as a share of the same samples' clean score.
    * `d_area`: area under the curve of the score over severities 0 (clean) to the worst, as a share of the width: the
      mean score along it (trapezoids). `d_area_relative`: as a share of the clean score.
    * `image_area`, `tags_area`, `question_area`, `area`: means over the degradations of a stream, and over all.
    * `samples`: how many records were asked about.

    The score of a sample is that of its task: VQA accuracy, IoU at the middle threshold reached or not, CIDEr-D (over
    all records, so each with the same idf), a right yes or no.

    Args:
        task (`str`, *optional*, defaults to `"vqa"`): as of [`GenerationEvaluator`]; one task, for tasks differ in what
            a score means.
        degradations (`Sequence[str]`, *optional*): keys of `DEGRADATION_STREAMS`, or of
            `DEGRADATION_SETS`; the standard set by default.
        severities (`Sequence[int]`, *optional*, defaults to 1 to 5)
        degradation_seed (`int`, *optional*, defaults to 0): of the random degradations.
        **options: of [`GenerationEvaluator`].

    Raises:
        ValueError: no task, an unknown degradation or severity.
    """

    primary_metric = "area"
    depends_on = (*GenerationEvaluator.depends_on, "degradations", "severities", "degradation_seed")

    task: str | None = "vqa"
    degradations: Any = None  # names; the standard set where nobody gives any
    severities: Sequence[int] = SEVERITIES
    degradation_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is None:
            raise ValueError("task=None, but scores of different tasks have no common mean: choose one, such as 'vqa'.")
        self.degradations = degradations_named(["standard"] if self.degradations is None else self.degradations)
        self.severities = tuple(sorted(self.severities))
        if not self.degradations or not self.severities:
            raise ValueError("degradations and severities: name at least one of each.")
        for name in self.degradations:
            for severity in self.severities:
                check_degradation(name, severity)
        self._known: dict[str, Row] = {}

    def describe(self) -> str:
        return "robustness"

    def __call__(self, model: Any, processor: Any, records: Iterable[Record]) -> dict[str, float]:
        self._known = {}
        degraded = DegradedRecords(records, self.degradations, self.severities, self.degradation_seed)
        return super().__call__(model, processor, degraded)

    def row(self, record: Record) -> Row | None:
        row = super().row(record)
        if row is None or record["cell"] is None:
            return None
        row.setdefault("group", record["cell"]["source"])
        return {**row, **record["cell"]}

    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        # A quarter of all cells say nothing new: no typing error was drawn, the image was not swapped yet.
        keys = [_content(record) for record in records]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        if new:
            some = [rows[place] for place in new.values()]
            before = set(some[0])
            super().predict(model, processor, [records[place] for place in new.values()], some)
            for key, row in zip(new, some, strict=True):
                self._known[key] = {name: value for name, value in row.items() if name not in before}
        for key, row in zip(keys, rows, strict=True):
            row |= self._known[key]
        # Cells of a sample follow one another: what is older does not come again.
        for key in list(self._known)[: max(0, len(self._known) - 4 * self.batch_size)]:
            del self._known[key]

    def score(self, rows: list[Row]) -> dict[str, float]:
        """The flat dict from rows that carry predictions; needs no model."""
        assert self.task is not None
        cells: dict[tuple[str, int], list[Row]] = {}
        for row in rows:
            cells.setdefault((row["degradation"], row["severity"]), []).append(row)
        scorer = TaskScorer(self.scorer.thresholds, resamples=0)
        primary = primary_score(self.task, self.scorer.thresholds)
        primary = "accuracy" if self.task == "pope" else primary  # F1 is no mean over samples
        scores: dict[tuple[str, int], dict[str, float]] = {}
        for cell, some in cells.items():
            per_sample = scorer(self.task, some).per_sample[primary]
            scores[cell] = {row["source"]: float(value) for row, value in zip(some, per_sample, strict=True)}
            for row in some:
                row["scores"] = {primary: scores[cell][row["source"]]}
        clean = scores[CLEAN, 0]
        groups = {row["source"]: row["group"] for row in cells[CLEAN, 0]}
        metrics = self._mean("clean", np.array(list(clean.values()))[:, None], list(groups.values()))
        areas: dict[str, dict[str, float]] = {}
        for name in self.degradations:
            if all((name, severity) in scores for severity in self.severities):
                found, areas[name] = self._of_degradation(name, scores, groups)
                metrics |= found
        for stream in (*dict.fromkeys(DEGRADATION_STREAMS.values()), ""):
            some_areas = [area for name, area in areas.items() if stream in ("", DEGRADATION_STREAMS[name])]
            sources = [source for source in clean if all(source in area for area in some_areas)]
            if some_areas and sources:
                means = np.array([np.mean([area[source] for area in some_areas]) for source in sources])  # (n,)
                label = f"{stream}_area" if stream else "area"
                metrics |= self._mean(label, means[:, None], [groups[source] for source in sources])
        return {**metrics, "samples": float(len(clean))}

    def _of_degradation(
        self, name: str, scores: dict[tuple[str, int], dict[str, float]], groups: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Scores of one degradation, and the area of each sample."""
        clean = scores[CLEAN, 0]
        sources = list(scores[name, self.severities[0]])
        columns = [[clean[source] for source in sources]]
        columns += [[scores[name, severity][source] for source in sources] for severity in self.severities]
        curve = np.array(columns).T  # (n, 1 + S)
        area = np.trapezoid(curve, np.array([0, *self.severities]), axis=1) / self.severities[-1]  # (n,)
        clusters = [groups[source] for source in sources]
        metrics: dict[str, float] = {}
        labels = [*(f"{name}_{severity}" for severity in self.severities), f"{name}_area"]
        for label, values in zip(labels, [*curve.T[1:], area], strict=True):
            metrics |= self._mean(label, values[:, None], clusters)
            metrics |= self._mean(f"{label}_relative", np.stack([values, curve[:, 0]], axis=1), clusters)
        return metrics, dict(zip(sources, area.tolist(), strict=True))

    def _mean(self, label: str, addends: np.ndarray, groups: Sequence[Any]) -> dict[str, float]:
        """Mean of (n, 1), or first column as a share of the second of (n, 2), with its interval; none of 0 / 0."""
        if addends.shape[1] == 2 and addends[:, 1].sum() == 0:
            return {}
        statistic = mean_of if addends.shape[1] == 1 else _ratio_of
        # A resample without one right answer has no ratio, and then there is no interval.
        return estimate(addends, statistic, groups, **self.scorer.bootstrap).flat(label)


def _ratio_of(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


def _content(record: Record) -> str:
    """All of a record that a model gets to see, as a digest."""
    image, tags = record["image"], [tuple(tag) for tag in record.get("tags") or []]
    digest = hashlib.sha256(repr((record.get("question"), tags)).encode())
    if image is not None:
        digest.update(repr(image.size).encode() + image.tobytes())
    return digest.hexdigest()
