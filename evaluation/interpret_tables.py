"""What interpretability finds, as plain tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from poise.evaluation.ablation_tokens import RIVALS
from poise.evaluation.attention_knockout import ALL_LAYERS
from poise.evaluation.score_table import format_table
from poise.evaluation.token_ablation import OTHER_PICTURE


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
    for said, name in (("its own", "clean"), ("another sample's (guessed)", OTHER_PICTURE)):
        cells = [_with_interval(metrics, f"{form}_{name}") for form in shown]
        if any(cells):
            before.append([said, *cells])
    rows = []
    for name in ("object", *RIVALS):
        for buffer in buffers:
            cells = [_with_interval(metrics, f"{form}_drop_{name}_{buffer}") for form in shown]
            if any(cells):
                rows.append([name, str(buffer), f"{metrics[f'tokens_{buffer}']:.1f}", *cells])
    for buffer in buffers:
        cells = [_with_interval(metrics, f"{form}_object_over_random_{buffer}") for form in shown]
        if any(cells):
            rows.append(["object - random", str(buffer), "", *cells])
    asked = max((metrics[f"{form}_samples"] for form in shown), default=0)
    title = f"Token ablation: share of {asked:.0f} objects identified, by picture shown"
    if metrics["skipped"]:
        title += f" ({metrics['skipped']:.0f} more lie outside of what the model sees)"
    lost = "Of these, share no longer identified once image tokens are replaced (LLaVA in the paper: over 70 %)"
    headers = ["replaced", "buffer", "tokens", *shown]
    return f"{title}\n{format_table(['picture', *shown], before)}\n\n{lost}\n{format_table(headers, rows)}"


def knockout_table(metrics: Mapping[str, float], pairs: Sequence[tuple[str, str]]) -> str:
    """Fall of the answer's probability by pair of groups and window of layers; from `AttentionKnockout`."""
    rows: list[list[str]] = []
    columns: list[str] = []
    for query, key in pairs:
        start = f"{query}_to_{key}_"
        windows = [k.removeprefix(start) for k in metrics if k.startswith(start) and not k.endswith(("_low", "_high"))]
        columns += [window for window in windows if window not in columns]
    columns = [column for column in columns if column != ALL_LAYERS] + [ALL_LAYERS]
    for query, key in pairs:
        keys = [f"{query}_to_{key}_{window}" for window in columns]
        cells = [f"{metrics[name]:.1%}" if name in metrics else "" for name in keys]
        if any(cells):
            interval = _with_interval(metrics, keys[-1]).partition(" ")[2]
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


def _with_interval(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return ""
    if f"{key}_low" not in metrics:
        return f"{metrics[key]:.1%}"
    return f"{metrics[key]:.1%} [{metrics[f'{key}_low']:.1%}, {metrics[f'{key}_high']:.1%}]"
