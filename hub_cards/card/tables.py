"""Measured rows as tables of a card: what belongs together in one, named as a reader would name it."""

from collections.abc import Sequence
from typing import Any

from .data import EvaluationRow

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
    "router image_weight": "router's weight of the picture",
    "router text_weight": "router's weight of the tags",
}
CLEAN = "clean"


def in_words(metric: str) -> str:
    """A metric's name for a reader."""
    if metric.startswith("grounding_accuracy@"):
        return f"accuracy at IoU {metric.partition('@')[2]}"
    if metric.endswith(("_empty_share", "_unfinished_share")):
        return f"{metric.split('_')[-2]} answers"
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def is_score(metric: str) -> bool:
    """Whether a number tells how good the answers are; shares of empty and of cut answers only explain it."""
    return not metric.endswith(("_empty_share", "_unfinished_share"))


def metric_tables(rows: Sequence[EvaluationRow]) -> list[dict[str, Any]]:
    """
    Tables of rows: a line for each data set and condition, a column for each metric; lines without a metric in common
    stand in tables of their own.

    Returns:
        `[{"dataset", "headers", "lines"}, ...]`; `dataset` is the one that all lines share, if they do, and has no
        column then; it is empty where the table before has the same. Conditions have no column where all is clean.
    """
    lines: dict[tuple[str, str], dict[str, EvaluationRow]] = {}
    for row in rows:
        lines.setdefault((row.dataset or "", row.condition), {})[row.metric] = row
    tables: list[list[tuple[str, str]]] = []
    for line, found in lines.items():
        related = [table for table in tables if any(found.keys() & lines[other].keys() for other in table)]
        tables = [table for table in tables if table not in related]
        tables.append([place for table in related for place in table] + [line])
    made = [_table({place: lines[place] for place in table}) for table in tables]
    for before, table in reversed(list(zip(made, made[1:], strict=False))):
        if table["dataset"] == before["dataset"]:  # it has just been said
            table["dataset"] = ""
    return made


def _table(lines: dict[tuple[str, str], dict[str, EvaluationRow]]) -> dict[str, Any]:
    metrics = list(dict.fromkeys(metric for found in lines.values() for metric in found))
    datasets = {dataset for dataset, _ in lines}
    shown = {
        "data": len(datasets) > 1,
        "condition": any(condition != CLEAN for _, condition in lines),
    }
    written = []
    for (dataset, condition), found in lines.items():
        count = next((row.n for row in found.values() if row.n is not None), None)
        names = [cell(name) for name, show in zip((dataset, condition), shown.values(), strict=True) if show]
        written.append([*names, *(interval(found.get(metric)) for metric in metrics), "–" if count is None else count])
    headers = [*(name for name, show in shown.items() if show), *(cell(in_words(metric)) for metric in metrics), "n"]
    return {"dataset": "" if shown["data"] else datasets.pop(), "headers": headers, "lines": written}


def markdown(table: dict[str, Any]) -> str:
    """A table with its data set above it, if that is the same for all lines."""
    lines = [table["headers"], ["---"] * len(table["headers"]), *table["lines"]]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    return f"On `{table['dataset']}`:\n\n{text}" if table["dataset"] else text


def cell(text: Any) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def interval(row: EvaluationRow | None) -> str:
    """A value with its interval: `0.512 [0.47, 0.55]`; without it for one of many severities, whose mean has one."""
    if row is None:
        return "–"
    bare = row.low is None or row.high is None or row.metric.startswith("severity ")
    return f"{row.value:.3f}" + ("" if bare else f" [{row.low:.3f}, {row.high:.3f}]")
