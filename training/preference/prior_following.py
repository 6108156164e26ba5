"""How often a model answers from the prior although the image says otherwise: counted beside its accuracy."""

from collections.abc import Mapping
from typing import Any

from ...evaluation.generation_evaluator import GenerationEvaluator
from ...evaluation.intervals import estimate
from ...evaluation.metrics.vqa_answers import normalize_answer


class PriorFollowing(GenerationEvaluator):
    """
    `GenerationEvaluator` over questions whose `metadata["prior_answer"]` says what the prior answers.

    Adds `prior_following`, the share of all such questions that are answered wrongly and just as the prior does, and
    `other_wrong`, the share of other wrong answers, with their intervals.
    """

    def row(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        row = super().row(record)
        if row is not None:
            row["prior_answer"] = (record.get("metadata") or {}).get("prior_answer")
        return row

    def score(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        metrics = super().score(rows)
        kinds = [answer_kinds(row) for row in rows if row.get("prior_answer") is not None]
        if not kinds:
            return metrics
        _, follows, other = zip(*kinds, strict=True)
        return metrics | estimate(follows).flat("prior_following") | estimate(other).flat("other_wrong")


def answer_kinds(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Whether a row's `prediction` is right, wrong as the prior's answer is, wrong in another way: one 1 and two 0."""
    if _says(row["prediction"], row["answers"]):
        return 1.0, 0.0, 0.0
    return (0.0, 1.0, 0.0) if _says(row["prediction"], [row["prior_answer"]]) else (0.0, 0.0, 1.0)


def _says(prediction: str, answers: list[str]) -> bool:
    return normalize_answer(prediction) in {normalize_answer(answer) for answer in answers}
