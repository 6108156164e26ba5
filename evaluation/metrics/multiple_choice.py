"""Multiple choice for `evaluate`: the choice to which the model gives the highest log-likelihood."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Accuracy of the choice with the highest log-likelihood, as a sum and per token."
CITATION = "Brown et al., Language Models are Few-Shot Learners, 2020, section 2.4 (normalization by length)."
INPUTS = """
Args:
    predictions (`list[list[float]]`): per question, the summed log-likelihood of each choice.
    references (`list[int]`): index of the right choice.
    num_tokens (`list[list[int]]`, *optional*): per question, the number of tokens of each choice.

Returns:
    `dict[str, float]`: accuracy; correct_probability (the right choice's share of the likelihood); with `num_tokens`
    also accuracy_per_token (log-likelihoods divided by the number of tokens, which does not favour short choices).
"""


def _checked(log_likelihoods: Sequence[float], correct: int, index: int) -> np.ndarray:
    values = np.asarray(log_likelihoods, dtype=np.float64)  # (C,)
    if values.size == 0 or np.isnan(values).any():
        raise ValueError(f"predictions[{index}]={list(log_likelihoods)} must be one number (not NaN) per choice.")
    if not 0 <= correct < values.size:
        raise ValueError(f"references[{index}]={correct} must be an index below the {values.size} choices.")
    return values


def _is_best(values: np.ndarray, correct: int) -> float:
    """1 where the right choice is ahead of all others; a tie is no answer, so it counts as wrong."""
    return float((values >= values[correct]).sum() == 1)


def multiple_choice_scores(
    log_likelihoods: Sequence[Sequence[float]],
    correct: Sequence[int],
    num_tokens: Sequence[Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Per question: accuracy, correct_probability and, with `num_tokens`, accuracy_per_token; each (N,).

    Raises:
        ValueError: no questions, NaN, an index without a choice, or token counts that do not fit.
    """
    if len(log_likelihoods) == 0:
        raise ValueError("predictions is empty: give the log-likelihoods of at least one question.")
    rows = [_checked(row, label, i) for i, (row, label) in enumerate(zip(log_likelihoods, correct, strict=True))]
    probabilities = []
    for row, label in zip(rows, correct, strict=True):
        weights = np.exp(row - row.max()) if np.isfinite(row.max()) else np.ones_like(row)
        probabilities.append(weights[label] / weights.sum())
    scores = {
        "accuracy": np.array([_is_best(row, label) for row, label in zip(rows, correct, strict=True)]),
        "correct_probability": np.array(probabilities),
    }
    if num_tokens is not None:
        per_token = []
        for i, (row, label, counts) in enumerate(zip(rows, correct, num_tokens, strict=True)):
            if len(counts) != row.size or min(counts) < 1:
                raise ValueError(f"num_tokens[{i}]={list(counts)} must be one positive count per choice ({row.size}).")
            per_token.append(_is_best(row / np.asarray(counts), label))
        scores["accuracy_per_token"] = np.array(per_token)
    return scores


class MultipleChoiceMetric(evaluate.Metric):
    """Multiple choice by log-likelihood; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[int],
        num_tokens: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, float]:
        scores = multiple_choice_scores(predictions, references, num_tokens)
        return {name: float(values.mean()) for name, values in scores.items()}
