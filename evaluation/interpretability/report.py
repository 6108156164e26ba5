"""What interpretability finds, as plain tables for a terminal.

Images of what interpretability finds: heat of a word over patches, drops by ablation, drops by blocked layers.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..intervals import Score, format_table, is_bound, score_text
from ..probing.token_groups import RIVALS
from ..score_bars import draw_bars
from ..whole_files import save_figure
from .attention_knockout import ALL_LAYERS
from .logit_lens import LogitLens
from .token_ablation import OTHER_IMAGE


def lens_table(found: Mapping[str, Any]) -> str:
    """How often the words of an object are read on it and elsewhere, by depth; from `study_lens`."""
    title = f"Logit lens: patches whose likeliest word is one of the object's name ({found['samples']} objects)"
    if found["reads_encoder"]:
        title += "; an encoder's states, which the head was not made for"
    rows = [
        ("input" if depth == 0 else f"layer {depth}", f"{there:.1%}", f"{elsewhere:.1%}")
        for depth, (there, elsewhere) in enumerate(zip(found["object"], found["rest"], strict=True))
    ]
    return f"{title}\n{format_table(('depth', 'on the object', 'elsewhere'), rows)}"


def ablation_table(metrics: Mapping[str, float], forms: Sequence[str], buffers: Sequence[int]) -> str:
    """What is identified before, and of that the share that is lost, with intervals; from `TokenAblation`."""
    shown = [form for form in forms if metrics.get(f"{form}_samples")]
    before = []
    for said, name in (("its own", "clean"), ("another sample's (guessed)", OTHER_IMAGE)):
        cells = [score_text(metrics, f"{form}_{name}", ".1%") for form in shown]
        if any(cells):
            before.append([said, *cells])
    rows = []
    for name in ("object", *RIVALS):
        for buffer in buffers:
            cells = [score_text(metrics, f"{form}_drop_{name}_{buffer}", ".1%") for form in shown]
            if any(cells):
                rows.append([name, str(buffer), f"{metrics[f'tokens_{buffer}']:.1f}", *cells])
    for buffer in buffers:
        cells = [score_text(metrics, f"{form}_object_over_random_{buffer}", ".1%") for form in shown]
        if any(cells):
            rows.append(["object - random", str(buffer), "", *cells])
    asked = max((metrics[f"{form}_samples"] for form in shown), default=0)
    title = f"Token ablation: share of {asked:.0f} objects identified, by image shown"
    if metrics["skipped"]:
        title += f" ({metrics['skipped']:.0f} more lie outside of what the model sees)"
    lost = "Of these, share no longer identified once image tokens are replaced (LLaVA in the paper: over 70 %)"
    headers = ["replaced", "buffer", "tokens", *shown]
    return f"{title}\n{format_table(['image', *shown], before)}\n\n{lost}\n{format_table(headers, rows)}"


def knockout_table(metrics: Mapping[str, float], pairs: Sequence[tuple[str, str]]) -> str:
    """Fall of the answer's probability by pair of groups and window of layers; from `AttentionKnockout`."""
    rows: list[list[str]] = []
    columns: list[str] = []
    for query, key in pairs:
        start = f"{query}_to_{key}_"
        windows = [k.removeprefix(start) for k in metrics if k.startswith(start) and not is_bound(k, metrics)]
        columns += [window for window in windows if window not in columns]
    columns = [column for column in columns if column != ALL_LAYERS] + [ALL_LAYERS]
    for query, key in pairs:
        keys = [f"{query}_to_{key}_{window}" for window in columns]
        cells = [f"{metrics[name]:.1%}" if name in metrics else "" for name in keys]
        if any(cells):
            interval = score_text(metrics, keys[-1], ".1%").partition(" ")[2]
            rows.append([query.replace("_", " "), key.replace("_", " "), *cells, interval])
    title = (
        f"Attention knockout: fall of the answer's probability without attention, by layers "
        f"({metrics['clean']:.0%} of {metrics['samples']:.0f} answered right, mean probability "
        f"{metrics['clean_probability']:.2f})"
    )
    headers = [
        "from",
        "to",
        *(column if column == ALL_LAYERS else f"{column}" for column in columns),
        "interval of all",
    ]
    return f"{title}\n{format_table(headers, rows, left=2)}"


_MOST_MAPS = 12
# Okabe and Ito's colours, which also colour-blind readers tell apart.
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKS = "osD^vPX*"
# The paper's figure for LLaVA, drawn beside ours.
PAPER_DROP = 0.7


def draw_word_heat(lens: LogitLens, word: str, path: str | os.PathLike) -> None:
    """
    PNG: the probability of `word` on every patch, one map for each depth (evenly chosen ones of a deep model).

    All maps share one scale, which ends at the highest probability. The object's patches are outlined, if known.

    Raises:
        ValueError: the word was not chosen when the lens was read.
    """
    depths = sorted({round(d) for d in np.linspace(0, lens.num_layers, min(lens.num_layers + 1, _MOST_MAPS))})
    most = max(float(lens.heat(word, depth).max()) for depth in depths)
    columns = min(len(depths), 6)
    rows = -(-len(depths) // columns)
    figure = Figure(figsize=(2.1 * columns + 0.9, 2.3 * rows + 0.7), layout="constrained")
    figure.suptitle(f"“{word}” read off the image tokens   {lens.title}", fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    extent = (0, lens.grid[1], lens.grid[0], 0)
    for axis in axes[len(depths) :]:
        axis.axis("off")
    for axis, depth in zip(axes, depths, strict=False):
        axis.imshow(lens.image, extent=extent, aspect="equal", interpolation="nearest")
        heat = lens.heat(word, depth)  # (rows, columns)
        strength = heat / most if most > 0 else heat
        shown = axis.imshow(
            heat,
            extent=extent,
            cmap="inferno",
            vmin=0,
            vmax=most or 1,
            alpha=0.15 + 0.75 * strength,
            interpolation="nearest",
        )
        if lens.object_patches is not None:
            _outline(axis, lens.object_patches)
        axis.set_title("input" if depth == 0 else f"after layer {depth}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=list(axes), shrink=0.8, label="probability")
    save_figure(figure, path, dpi=130)


def draw_ablation(
    metrics: Mapping[str, float], forms: Sequence[str], buffers: Sequence[int], path: str | os.PathLike
) -> None:
    """PNG: what is no longer identified, by form of question, tokens replaced and buffer; from `TokenAblation`."""
    shown = [form for form in forms if f"{form}_drop_object_{buffers[0]}" in metrics]
    figure = Figure(figsize=(4.2 * max(len(shown), 1) + 0.8, 3.9), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, max(len(shown), 1), squeeze=False, sharey=True).ravel())
    names = [
        name for name in ("object", *RIVALS) if any(f"{form}_drop_{name}_{buffers[0]}" in metrics for form in shown)
    ]
    if not shown:
        axes[0].text(
            0.5, 0.5, "no object was identified with nothing replaced", ha="center", transform=axes[0].transAxes
        )
    for axis, form in zip(axes, shown, strict=False):
        for place, name in enumerate(names):
            drops = [Score.read(metrics, f"{form}_drop_{name}_{buffer}") for buffer in buffers]
            width = 0.84 / len(names)
            places = np.arange(len(buffers)) + (place - (len(names) - 1) / 2) * width
            draw_bars(axis, places, drops, width, _COLORS[place], name, form=".0%")
        axis.axhline(PAPER_DROP, color="#666666", lw=1, ls="--", zorder=0)
        title = f"{form}: {metrics[f'{form}_clean']:.0%} of {metrics[f'{form}_samples']:.0f} identified"
        if f"{form}_{OTHER_IMAGE}" in metrics:
            title += f" (guessed: {metrics[f'{form}_{OTHER_IMAGE}']:.0%})"
        axis.set_title(title, fontsize=10, loc="left")
        labels = [f"buffer {buffer}\n{metrics[f'tokens_{buffer}']:.1f} tokens" for buffer in buffers]
        axis.set_xticks(range(len(buffers)), labels, fontsize=9)
        axis.set_ylim(0, 1.1)
        axis.set_yticks(np.arange(0, 1.01, 0.2))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("of the identified objects no longer\nidentified (lines: 95 %)")
    if shown:
        figure.suptitle(
            "Image tokens replaced: what the model then no longer identifies", x=0.01, ha="left", fontsize=11
        )
        axes[0].text(len(buffers) - 0.5, PAPER_DROP, "LLaVA,\npaper", fontsize=7, color="#444444", va="center")
        axes[-1].legend(
            frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.02, 1.0), title="replaced tokens"
        )
    save_figure(figure, path, dpi=130)


def draw_knockout(metrics: Mapping[str, float], pairs: Sequence[tuple[str, str]], path: str | os.PathLike) -> None:
    """PNG: fall of the answer's probability by window of layers, a line for each pair; from `AttentionKnockout`."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    figure.suptitle(
        "Attention blocked: how much less probable the right answer becomes", x=0.01, ha="left", fontsize=11
    )
    axis, whole = figure.subplots(1, 2, width_ratios=(3, 1.4), sharey=True)
    labels: list[str] = []
    drawn: list[str] = []
    for place, (query, key) in enumerate(pairs):
        start = f"{query}_to_{key}_"
        names = [k for k in metrics if k.startswith(start) and not is_bound(k, metrics)]
        windows = [name for name in names if not name.endswith(ALL_LAYERS)]
        if not names:
            continue
        color, style = _COLORS[place % len(_COLORS)], "-" if query == "last" else "--"
        middles = [np.mean([int(n) for n in name.removeprefix(start).split("-")]) for name in windows]
        heights = [metrics[name] for name in windows]
        label = f"{query} → {key}".replace("_", " ")
        axis.plot(middles, heights, style, marker=_MARKS[place % len(_MARKS)], ms=5, color=color, label=label)
        low, high = zip(*(Score.read(metrics, name).bounds for name in windows), strict=True)
        axis.fill_between(middles, low, high, color=color, alpha=0.12, lw=0)
        if len(windows) > len(labels):
            labels = [_short(name.removeprefix(start)) for name in windows]
            axis.set_xticks(middles[:: max(1, len(middles) // 12)], labels[:: max(1, len(middles) // 12)], fontsize=8)
        draw_bars(whole, [len(drawn)], [Score.read(metrics, f"{start}{ALL_LAYERS}")], 0.75, color)
        drawn.append(label)
    for some in (axis, whole):
        some.axhline(0, color="#666666", lw=0.8)
        some.spines[["top", "right"]].set_visible(False)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel("blocked layers (the first is 0)")
    axis.set_ylabel("fall of the answer's probability (95 % intervals)")
    axis.set_title("a few layers at a time", fontsize=10, loc="left")
    whole.set_xticks(range(len(drawn)), drawn, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    whole.set_title("all layers at once", fontsize=10, loc="left")
    if drawn:
        axis.legend(frameon=False, fontsize=8)
    else:
        axis.text(0.5, 0.5, "no answer was right with nothing blocked", ha="center", transform=axis.transAxes)
    save_figure(figure, path, dpi=130)


def _short(window: str) -> str:
    """ "3-3" is layer 3."""
    first, last = window.split("-")
    return first if first == last else window


def _outline(axis: Axes, patches: np.ndarray) -> None:
    """Lines around the chosen cells of a grid."""
    padded = np.pad(patches.astype(int), 1)
    for row, column in zip(*np.nonzero(np.diff(padded, axis=0)), strict=True):
        axis.plot([column - 1, column], [row, row], color="white", lw=1.6)
    for row, column in zip(*np.nonzero(np.diff(padded, axis=1)), strict=True):
        axis.plot([column, column], [row - 1, row], color="white", lw=1.6)
