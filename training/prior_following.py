"""How often a model answers from the prior although the picture says otherwise: counted beside its accuracy."""

from collections.abc import Mapping
from typing import Any

from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.evaluation.mean_with_interval import mean_with_interval
from poise.evaluation.metrics.vqa_answers import normalize_answer


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
        asked = [row for row in rows if row.get("prior_answer") is not None]
        if not asked:
            return metrics
        right = [_says(row["prediction"], row["answers"]) for row in asked]
        prior = [_says(row["prediction"], [row["prior_answer"]]) for row in asked]
        follows = [float(p and not r) for p, r in zip(prior, right, strict=True)]
        other = [float(not p and not r) for p, r in zip(prior, right, strict=True)]
        return metrics | mean_with_interval("prior_following", follows) | mean_with_interval("other_wrong", other)


def _says(prediction: str, answers: list[str]) -> bool:
    return normalize_answer(prediction) in {normalize_answer(answer) for answer in answers}
