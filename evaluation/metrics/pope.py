"""POPE for `evaluate`: does a model see objects that are not there? Yes/no questions, "yes" is the positive class."""

import re
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Object hallucination by yes/no polling: accuracy, precision, recall, F1 and the share of yes."
CITATION = "Li et al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023, section 5."
INPUTS = """
Args:
    predictions (`list[str]`): the model's answers, as text.
    references (`list[str]`): "yes" or "no".
    published_rule (`bool`, *optional*, defaults to `False`): read answers as POPE's own script does: "no" where the
        first sentence holds the word "no" or "not", else "yes", whatever it says. By default an answer counts as yes or
        no only if it says so, and anything else is wrong and shown in `unparsable_share`.

Returns:
    `dict[str, float]`: accuracy, precision, recall, f1, yes_ratio, unparsable_share.
"""

YES, NO = 1, 0


def read_yes_no(answer: str, published_rule: bool = False) -> int | None:
    """`YES`, `NO`, or `None` for an answer that says neither (or says both)."""
    if published_rule:
        words = answer.split(".")[0].replace(",", "").split(" ")
        return NO if {"No", "no", "not"} & set(words) else YES
    words = re.findall(r"[a-z']+", answer.lower())
    if words and words[0] in ("yes", "no"):
        return YES if words[0] == "yes" else NO
    says_yes = "yes" in words
    says_no = "no" in words or "not" in words or any(word.endswith("n't") for word in words)
    return None if says_yes == says_no else YES if says_yes else NO


def pope_counts(predictions: Sequence[str], references: Sequence[str], published_rule: bool = False) -> np.ndarray:
    """Per answer: true positive, false positive, true negative, false negative, said yes, unparsable.

    An unparsable answer to a question whose answer is yes is a false negative (it was not found); to one whose answer
    is no it is neither a false positive nor a true negative, so it costs accuracy but not precision.

    Returns:
        `np.ndarray` (N, 6) of 0 and 1.
    """
    if len(predictions) == 0:
        raise ValueError("predictions is empty: give at least one answer.")
    rows = np.zeros((len(predictions), 6))  # (N, 6)
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        truth = {"yes": YES, "no": NO}.get(reference.strip().lower())
        if truth is None:
            raise ValueError(f'references[{i}]={reference!r} must be "yes" or "no".')
        said = read_yes_no(prediction, published_rule)
        rows[i] = (
            truth == YES and said == YES,
            truth == NO and said == YES,
            truth == NO and said == NO,
            truth == YES and said != YES,
            said == YES,
            said is None,
        )
    return rows


def pope_from_counts(totals: np.ndarray, samples: int | np.ndarray) -> dict[str, np.ndarray]:
    """The scores from summed `pope_counts`; a ratio without a case is 0.

    Args:
        totals (`np.ndarray` (..., 6)): sums over answers; leading axes are separate sets (bootstrap resamples).
        samples (`int` or `np.ndarray` (...)): number of answers in each.
    """
    true_positive, false_positive, true_negative, false_negative, yes, unparsable = np.moveaxis(totals, -1, 0)

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)

    return {
        "accuracy": (true_positive + true_negative) / samples,
        "precision": ratio(true_positive, true_positive + false_positive),
        "recall": ratio(true_positive, true_positive + false_negative),
        "f1": ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        "yes_ratio": yes / samples,
        "unparsable_share": unparsable / samples,
    }


class PopeMetric(evaluate.Metric):
    """POPE; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], published_rule: bool = False
    ) -> dict[str, float]:
        counts = pope_counts(predictions, references, published_rule)
        return {name: float(value) for name, value in pope_from_counts(counts.sum(axis=0), len(counts)).items()}
