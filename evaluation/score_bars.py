"""Bars of scores with their intervals as lines, for the figures of all evaluations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .intervals import Score


def draw_bars(
    axis: Axes,
    places: Sequence[float] | np.ndarray,
    scores: Sequence[Score],
    width: float,
    color: str,
    label: str | None = None,
    form: str | None = None,
    **line: Any,
) -> None:
    """
    One bar for each score.

    Args:
        places: of their middles. width: of each. label (*optional*): in the legend.
        form (*optional*): writes each value in this format above its interval.
        **line: properties of the lines, such as `ecolor`.
    """
    values = [score.value for score in scores]
    errors = np.concatenate([score.errors for score in scores], axis=1)  # (2, n)
    axis.bar(places, values, width, color=color, label=label, yerr=errors, error_kw={"lw": 1, "capsize": 1.5, **line})
    if form is None:
        return
    for place, score in zip(places, scores, strict=True):
        text = format(score.value, form)
        text = text.removeprefix("0") if text.startswith("0.") else text
        axis.text(place, max(score.value, score.bounds[1]) + 0.012, text, ha="center", va="bottom", fontsize=7)
