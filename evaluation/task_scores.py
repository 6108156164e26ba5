"""From rows of predictions to a task's scores, with bootstrap intervals; needs no model.

A row is what `predictions.jsonl` holds: `id`, `task`, `prediction`, and the references of its task.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..processing.grounding_text import text_to_box
from .intervals import Score, Statistic, estimate, mean_of
from .metrics.caption_scores import bleu_from_statistics, bleu_statistics, cider_d_scores, rouge_l_scores
from .metrics.captions import tokenize_captions
from .metrics.grounding_accuracy import grounding_scores, threshold_name
from .metrics.hallusion_bench import hallusion_bench_scores
from .metrics.multiple_choice import multiple_choice_scores
from .metrics.pope import pope_counts, pope_from_counts
from .metrics.vqa_answers import normalize_answer, vqa_accuracy

Rows = Sequence[dict[str, Any]]


@dataclass
class Scores:
    """Scores of one task by name; those of each sample by name."""

    scores: dict[str, Score] = field(default_factory=dict)
    per_sample: dict[str, np.ndarray] = field(default_factory=dict)  # each (N,)


@dataclass
class TaskScorer:
    """Scores rows of one task.

    Args:
        thresholds (`Sequence[float]`, *optional*): IoU values of grounding.
        resamples (`int`, *optional*, defaults to 1000): of the bootstrap; 0 for no intervals.
        confidence (`float`, *optional*, defaults to 0.95): of the intervals.
        seed (`int`, *optional*, defaults to 0): of the bootstrap.
    """

    thresholds: Sequence[float] = (0.1, 0.5, 0.75)
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __call__(self, task: str, rows: Rows) -> Scores:
        """Scores of `rows`, all of one task."""
        found: Scores = getattr(self, f"_{task}")(rows)
        if task != "multiple_choice":
            empty = [float(not row["prediction"].strip()) for row in rows]
            found.scores["empty_share"] = Score(float(np.mean(empty)))
            if all("finished" in row for row in rows):
                unfinished = [float(not row["finished"]) for row in rows]
                found.scores["unfinished_share"] = Score(float(np.mean(unfinished)))
        return found

    @property
    def bootstrap(self) -> dict[str, Any]:
        """Options of [`estimate`]."""
        return {"confidence": self.confidence, "resamples": self.resamples, "seed": self.seed}

    def _estimate(self, rows: Rows, addends: np.ndarray, statistic: Statistic = mean_of) -> Score:
        return estimate(addends, statistic, [row.get("group", row["id"]) for row in rows], **self.bootstrap)

    def _means(self, rows: Rows, per_sample: dict[str, np.ndarray]) -> Scores:
        return Scores({name: self._estimate(rows, values) for name, values in per_sample.items()}, per_sample)

    def _caption(self, rows: Rows) -> Scores:
        hypotheses, references = tokenize_captions(
            [row["prediction"] for row in rows], [row["captions"] for row in rows]
        )
        found = self._means(
            rows,
            {"cider_d": cider_d_scores(hypotheses, references), "rouge_l": rouge_l_scores(hypotheses, references)},
        )
        statistics = bleu_statistics(hypotheses, references)  # (N, 10)
        for order in range(1, 5):
            found.scores[f"bleu_{order}"] = self._estimate(rows, statistics, _bleu_of_order(order))
        return found

    def _vqa(self, rows: Rows) -> Scores:
        accuracy = [vqa_accuracy(row["prediction"], row.get("answer_scores") or row["answers"]) for row in rows]
        return self._means(rows, {"accuracy": np.array(accuracy)})

    def _pope(self, rows: Rows) -> Scores:
        truths = [normalize_answer(row["answers"][0]) for row in rows]
        counts = pope_counts([row["prediction"] for row in rows], truths)  # (N, 6)
        names = pope_from_counts(counts.sum(axis=0), len(rows))
        scores = {name: self._estimate(rows, counts, _pope_score(name)) for name in names}
        return Scores(scores, {"accuracy": counts[:, 0] + counts[:, 2]})

    def _hallusionbench(self, rows: Rows) -> Scores:
        values, right = hallusion_bench_scores(
            [row["prediction"] for row in rows],
            [normalize_answer(row["answers"][0]) for row in rows],
            [row["asked"] for row in rows],
            [row["figure"] for row in rows],
        )
        found = self._means(rows, {"aAcc": right})
        found.scores |= {name: Score(value) for name, value in values.items() if name not in found.scores}
        return found

    def _mmstar(self, rows: Rows) -> Scores:
        right = [first_letter(row["prediction"]) == row["answers"][0].strip().upper() for row in rows]
        return self._means(rows, {"accuracy": np.array(right, dtype=np.float64)})

    def _multiple_choice(self, rows: Rows) -> Scores:
        return self._means(
            rows,
            multiple_choice_scores(
                [row["log_likelihoods"] for row in rows],
                [row["correct_choice_idx"] for row in rows],
                [row["num_tokens"] for row in rows],
            ),
        )

    def _grounding(self, rows: Rows) -> Scores:
        boxes = [text_to_box(row["prediction"], row["width"], row["height"]) for row in rows]
        return self._means(rows, grounding_scores(boxes, [row["bbox"] for row in rows], self.thresholds))


def first_letter(answer: str) -> str | None:
    """The option that an answer names, such as "B" of "(B) a cat" or "The answer is B."; `None` if it names none."""
    found = re.match(r"\W*([A-Z])\b(?! [a-z])", answer) or re.search(r"(?:^|[\s(:])([A-Z])(?=$|[.,:)])", answer)
    return found.group(1) if found else None


def primary_score(task: str, thresholds: Sequence[float]) -> str:
    """Name of the score that stands for a task."""
    if task == "grounding":
        # The middle one of the usual three is the one that papers report.
        return threshold_name(0.5 if 0.5 in thresholds else sorted(thresholds)[len(thresholds) // 2])
    return {"caption": "cider_d", "pope": "f1", "hallusionbench": "aAcc"}.get(task, "accuracy")


def _bleu_of_order(order: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda sums, sizes: bleu_from_statistics(sums)[:, order - 1]


def _pope_score(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda sums, sizes: pope_from_counts(sums, sizes)[name]
