"""Measured rows as tables of a card, named as a reader names them: one that is read at once, one with all of it."""

from collections.abc import Sequence
from typing import Any

from .data import EvaluationRow
from .escaping import Markdown, code, escape

METRIC_NAMES = {
    "vqa_accuracy": "VQA accuracy",
    "vqa_accuracy, mean over severities": "VQA accuracy, mean over severities",
    "multiple_choice_accuracy": "multiple-choice accuracy",
    "caption_cider_d": "CIDEr-D",
    "caption_rouge_l": "ROUGE-L",
    **{f"caption_bleu_{order}": f"BLEU-{order}" for order in range(1, 5)},
    "grounding_mean_iou": "mean IoU",
    "pope_f1": "POPE F1",
    "pope_yes_share": "POPE share of yes",
    "router image_weight": "router's weight of the image",
    "router text_weight": "router's weight of the tags",
}
CLEAN = "clean"
MOST_LINES = 10  # of the table that is read at once
WEIGHTS = ("router image_weight", "router text_weight")


def in_words(metric: str) -> str:
    """A metric's name for a reader."""
    if metric.startswith("grounding_accuracy@"):
        return f"accuracy at IoU {metric.partition('@')[2]}"
    if metric.endswith(("_empty_share", "_unfinished_share")):
        return f"{metric.split('_')[-2]} answers"
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def is_score(metric: str) -> bool:
    """Whether a number tells how good the answers are; the others only explain it."""
    explains = metric.endswith(("_empty_share", "_unfinished_share")) or metric.startswith(("severity ", "router "))
    return not explains


def scores_by_condition(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """One score for each condition, of the metric and the data that come first; sound input first, then the worst."""
    first = next((row for row in rows if is_score(row.metric)), None)
    if first is None:
        return []
    metric = first.metric.partition(",")[0]
    found: dict[str, EvaluationRow] = {}
    for row in rows:
        if row.metric.partition(",")[0] == metric and row.dataset == first.dataset:
            found.setdefault(row.condition, row)
    sound = [row for row in found.values() if row.condition == CLEAN]
    return sound + sorted((row for row in found.values() if row.condition != CLEAN), key=lambda row: row.value)


def condition_table(rows: Sequence[EvaluationRow]) -> dict[str, Any] | None:
    """
    How a model holds up: a line for each condition, sound input first, then those that cost most.

    Returns:
        `{"dataset", "headers", "lines", "left_out"}` with at most six columns and `MOST_LINES` lines; `None` without a
        score.
    """
    scores = scores_by_condition(rows)
    if not scores:
        return None
    weights = {(row.condition, row.metric): row.value for row in rows if row.metric in WEIGHTS}
    shown = [name for name in WEIGHTS if any(name == metric for _, metric in weights)]
    sound = scores[0].value if scores[0].condition == CLEAN else None
    lines = []
    for row in scores[:MOST_LINES]:
        change = [] if sound is None else ["" if row.condition == CLEAN else f"{row.value - sound:+.3f}"]
        share = [f"{weights[place]:.2f}" if (place := (row.condition, name)) in weights else "–" for name in shown]
        lines.append([row.condition, interval(row), *change, *share, "–" if row.n is None else row.n])
    headers = ["condition", in_words(scores[-1].metric), *(["change"] if sound is not None else [])]
    headers += [in_words(name) for name in shown]
    left_out = max(0, len(scores) - MOST_LINES)
    return {"dataset": scores[0].dataset, "headers": [*headers, "n"], "lines": lines, "left_out": left_out}


def verdict(rows: Sequence[EvaluationRow]) -> str:
    """The same in a sentence: sound input, and what costs most."""
    scores = scores_by_condition(rows)
    if len(scores) < 2 or scores[0].condition != CLEAN:
        return ""
    sound, worst = scores[0], scores[1]
    metric = in_words(sound.metric.partition(",")[0])
    if worst.value >= sound.value:
        return f"{metric} is {sound.value:.2f} on sound input, and no condition that was measured lowers it."
    return f"{metric} is {sound.value:.2f} on sound input and falls to {worst.value:.2f} at worst ({worst.condition})."


def score_table(rows: Sequence[EvaluationRow]) -> dict[str, Any]:
    """Every row as a line: data, condition, metric, value, n; data and condition only where they differ."""
    shown = {
        "data": len({row.dataset for row in rows}) > 1,
        "condition": any(row.condition != CLEAN for row in rows),
    }
    lines = []
    for row in rows:
        names = [row.dataset or "–"] * shown["data"] + [row.condition] * shown["condition"]
        lines.append([*names, in_words(row.metric), interval(row), "–" if row.n is None else row.n])
    headers = [*(name for name, show in shown.items() if show), "metric", "value", "n"]
    return {"dataset": None if shown["data"] or not rows else rows[0].dataset, "headers": headers, "lines": lines}


def markdown(table: dict[str, Any]) -> Markdown:
    """A table with its data set above it, if that is the same for all lines."""
    lines = [table["headers"], *table["lines"]]
    written = ["| " + " | ".join(map(escape, line)) + " |" for line in lines]
    written.insert(1, "| " + " | ".join(["---"] * len(table["headers"])) + " |")
    text = "\n".join(written)
    return Markdown(f"On {code(table['dataset'])}:\n\n{text}" if table["dataset"] else text)


def interval(row: EvaluationRow) -> Markdown:
    """A value with its interval: `0.512 [0.47, 0.55]`; without it for one of many severities, whose mean has one."""
    return Markdown(f"{row.value:.3f}" if row.metric.startswith("severity ") else row.score.text(".3f"))
