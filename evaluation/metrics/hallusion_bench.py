"""HallusionBench's accuracies: of answers, whole questions and whole figures; and how far a model leans towards yes."""

from collections.abc import Sequence

import numpy as np

from .pope import YES, read_yes_no


def hallusion_bench_scores(
    predictions: Sequence[str], answers: Sequence[str], questions: Sequence[str], figures: Sequence[str | None]
) -> tuple[dict[str, float], np.ndarray]:
    """
    aAcc, qAcc and fAcc of Guan et al. (arXiv 2310.14566, section 4), read off yes or no in place of asking GPT-4.

    Args:
        predictions: the model's answers, as text.
        answers: "yes" or "no".
        questions: key of the question that each belongs to; it is asked about several figures, and counts in qAcc only
            if it is answered rightly about all of them.
        figures: key of the figure; counts in fAcc if everything asked about it is answered rightly. `None` without one.

    Returns:
        `aAcc`, `qAcc`, `fAcc`, `yes_difference` (share of yes among the answers less that among the truths), and
        whether each answer is right, (N,).

    Raises:
        ValueError: an answer is neither yes nor no.
    """
    for i, answer in enumerate(answers):
        if answer not in ("yes", "no"):
            raise ValueError(f'answers[{i}]={answer!r} must be "yes" or "no".')
    said = [read_yes_no(prediction) for prediction in predictions]
    truths = [YES if answer == "yes" else 1 - YES for answer in answers]
    right = np.array([float(says == truth) for says, truth in zip(said, truths, strict=True)])  # (N,)
    scores = {"aAcc": float(right.mean())}
    for name, keys in (("qAcc", questions), ("fAcc", figures)):
        whole: dict[str, bool] = {}
        for key, correct in zip(keys, right, strict=True):
            if key is not None:
                whole[key] = whole.get(key, True) and bool(correct)
        if whole:
            scores[name] = float(np.mean(list(whole.values())))
    scores["yes_difference"] = float(np.mean([says == YES for says in said]) - np.mean([t == YES for t in truths]))
    return scores, right
