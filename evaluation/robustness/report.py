"""What robustness measured, as a table, an image, and rows of a model card."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ...processing.degradations.degradations import DEGRADATION_STREAMS
from ..intervals import Score, card_row, format_table, score_text
from ..score_bars import draw_bars
from ..whole_files import save_figure

Scores = Mapping[str, float]
TITLES = {"image": "image damaged", "tags": "tags damaged", "question": "question damaged"}
# Okabe and Ito's colours, which also colour-blind readers tell apart; lines differ in their marks as well.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "osD^vPX"


def measured(scores: Scores, degradations: Sequence[str]) -> list[str]:
    """Those of `degradations` that the data had something for."""
    return [name for name in degradations if f"{name}_area" in scores]


def robustness_table(scores: Scores, degradations: Sequence[str], severities: Sequence[int]) -> str:
    """One line for each degradation: score by severity and what share of clean that is; area under the curve, alike."""
    rows = []
    for name in measured(scores, degradations):
        rows.append(
            [
                DEGRADATION_STREAMS[name],
                name,
                *(_with_share(scores, f"{name}_{severity}") for severity in severities),
                score_text(scores, f"{name}_area"),
                score_text(scores, f"{name}_area_relative", ".0%"),
            ]
        )
    for stream in (*TITLES, ""):
        key = f"{stream}_area" if stream else "area"
        if key in scores:
            rows.append([stream or "all", "mean of these", *("" for _ in severities), score_text(scores, key), ""])
    headers = ["stream", "degradation", *(f"severity {s}" for s in severities), "area", "area / clean"]
    title = (
        f"clean {score_text(scores, 'clean')}, {scores['samples']:.0f} samples; percentages: relative to clean; in "
        "brackets 95 % intervals"
    )
    if scores["clean"] == 0:
        title = f"nothing is right with nothing degraded, so this says nothing about robustness\n{title}"
    return f"{title}\n{format_table(headers, rows, left=2)}"


def _with_share(scores: Scores, key: str) -> str:
    """`0.512  57%`: a score, and the same relative to the clean one."""
    share = f"{scores[f'{key}_relative']:.0%}" if f"{key}_relative" in scores else ""
    return f"{scores[key]:.3f} {share:>4}".rstrip()


def draw_robustness(
    scores: Scores, degradations: Sequence[str], severities: Sequence[int], metric: str, path: str | os.PathLike
) -> None:
    """PNG: above, the score by severity, a panel for each stream; below, areas relative to clean with intervals."""
    names = measured(scores, degradations)
    streams = [stream for stream in TITLES if any(DEGRADATION_STREAMS[name] == stream for name in names)]
    figure = Figure(figsize=(4.6 * max(len(streams), 1), 8.0), layout="constrained")
    upper, lower = np.ravel(figure.subfigures(2, 1, height_ratios=(1.5, 1)))
    panels = upper.subplots(1, max(len(streams), 1), sharey=True, squeeze=False).ravel()
    colors = {}
    for panel, stream in zip(panels, streams, strict=False):
        some = [name for name in names if DEGRADATION_STREAMS[name] == stream]
        colors |= {name: _COLORS[place % len(_COLORS)] for place, name in enumerate(some)}
        _draw_curves(panel, scores, some, severities, colors)
        panel.set_title(TITLES[stream], loc="left", fontsize=11)
    panels[0].set_ylabel(f"{metric.replace('_', ' ')} (dashed: clean, band: 95 %)")
    _draw_areas(lower.subplots(), scores, names, colors)
    save_figure(figure, path, dpi=130)


def _draw_curves(
    axis: Axes, scores: Scores, names: Sequence[str], severities: Sequence[int], colors: Mapping[str, str]
) -> None:
    axis.axhline(scores["clean"], color="#888888", lw=1, ls="--")
    axis.axhspan(*Score.read(scores, "clean").bounds, color="#888888", alpha=0.15, lw=0)
    for place, name in enumerate(names):
        heights = [scores["clean"], *(scores[f"{name}_{severity}"] for severity in severities)]
        axis.plot(
            [0, *severities],
            heights,
            color=colors[name],
            marker=_MARKS[place % len(_MARKS)],
            ms=4.5,
            lw=1.6,
            label=name.replace("_", " "),
        )
    axis.set_xticks([0, *severities], ["clean", *map(str, severities)])
    axis.set_xlabel("severity")
    # Scores may exceed one (CIDEr-D); they never are negative.
    axis.set_ylim(0, max(1.0, *(scores.get(f"{name}_{s}", 0.0) for name in names for s in severities)) * 1.02)
    axis.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    axis.spines[["top", "right"]].set_visible(False)


def _draw_areas(axis: Axes, scores: Scores, names: Sequence[str], colors: Mapping[str, str]) -> None:
    shown = [name for name in names if f"{name}_area_relative" in scores]
    for place, name in enumerate(shown):
        draw_bars(axis, [place], [Score.read(scores, f"{name}_area_relative")], 0.7, colors[name], form=".0%")
    axis.axhline(1, color="#888888", lw=1, ls="--")
    axis.set_xticks(range(len(shown)), [name.replace("_", "\n") for name in shown], fontsize=8.5)
    axis.set_ylabel("area under the curve\nas a share of clean (lines: 95 %)")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title("what is left over all severities", loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    if not shown:
        axis.text(0.5, 0.5, "nothing was right with nothing degraded", ha="center", transform=axis.transAxes)


def robustness_rows(
    scores: Scores, degradations: Sequence[str], severities: Sequence[int], metric: str, dataset: str
) -> list[dict[str, Any]]:
    """Rows for the model card, as `EvaluationRow` of the cards takes them: a line for each degradation."""

    area = f"{metric}, mean over severities"
    rows = [card_row(scores, "clean", "clean", area, dataset)]
    for name in measured(scores, degradations):
        said = name.replace("_", " ")
        rows.append(card_row(scores, f"{name}_area", said, area, dataset))
        rows += [card_row(scores, f"{name}_{s}", said, f"severity {s}", dataset) for s in severities]
    return rows
