"""Which modality dominates, in plain words with the figures behind them."""

from collections.abc import Mapping, Sequence

from poise.evaluation.degraded_records import CLEAN

Scores = Mapping[str, float]
NAMES = {"image": "picture", "tags": "tags", "question": "question"}
# One modality dominates another if it is worth more than twice as much and the intervals lie apart.
_MUCH_MORE = 2.0


def verdict(
    coalitions: Scores | None, attention: Scores | None, router: Scores | None, players: Sequence[str]
) -> list[str]:
    """Sentences, the first of them the verdict itself; each on what was measured."""
    sentences: list[str] = []
    if coalitions is not None:
        sentences += _of_coalitions(coalitions, players)
    if attention is not None:
        sentences.append(_of_attention(attention))
    if router is not None:
        sentences.append(_of_router(router))
    return sentences


def baseline_of(coalitions: Scores) -> str:
    """The baseline that the verdict rests on: swapped input, which is natural, where it was measured."""
    return "swap" if any(key.startswith("swap_") for key in coalitions) else "mean"


def dominant(coalitions: Scores, players: Sequence[str]) -> str:
    """Name of the player that dominates; "balanced", or "none" where no input helps.

    The question is asked about something: it is compared only where there are no tags.
    """
    base = baseline_of(coalitions)
    rivals = [name for name in players if name != "question"] if "tags" in players else list(players)
    values = {name: coalitions[f"{base}_accuracy_value_{name}"] for name in rivals}
    if not any(_bound(coalitions, f"{base}_accuracy_value_{name}", "low") > 0 for name in rivals):
        return "none"
    first, second = sorted(rivals, key=lambda name: -values[name])[:2]
    apart = _bound(coalitions, f"{base}_accuracy_value_{first}", "low") > _bound(
        coalitions, f"{base}_accuracy_value_{second}", "high"
    )
    return first if apart and values[first] > _MUCH_MORE * values[second] else "balanced"


def _of_coalitions(scores: Scores, players: Sequence[str]) -> list[str]:
    base = baseline_of(scores)
    chosen = dominant(scores, players)
    shares = [
        f"{NAMES[name]} {_percent(scores, f'{base}_accuracy_share_{name}')}"
        for name in players
        if f"{base}_accuracy_share_{name}" in scores
    ]
    behind = f" (share of what the input adds to accuracy: {', '.join(shares)})" if shares else ""
    head = {
        "none": "Neither picture nor words make the answers better than wrong ones do",
        "balanced": "No modality dominates the answers",
    }.get(chosen, f"The {NAMES.get(chosen, chosen)} {'dominate' if chosen == 'tags' else 'dominates'} the answers")
    sentences = [f"{head}{behind}."]
    everything = scores["accuracy"]
    verb = {"swap": "swapped", "mean": "replaced by its mean"}[base]
    drops = []
    for name in players:
        key = f"{base}_accuracy_{'+'.join(other for other in players if other != name)}"
        drops.append(f"{_figure(scores, key)} with the {NAMES[name]} {verb}")
    sentences.append(f"Accuracy is {everything:.2f} with everything right, {', '.join(drops)}.")
    if "conflict_accuracy" in scores:
        sentences.append(
            f"Where the prior is wrong ({scores['conflict_samples']:.0f} samples) "
            f"{_percent(scores, 'conflict_accuracy')} of the answers are right and "
            f"{_percent(scores, 'conflict_prior')} follow the prior."
        )
    return sentences


def _of_attention(scores: Scores) -> str:
    if "mdi" not in scores:
        return "Attention: the prompt has no image or no text tokens, so MDI is not defined."
    mdi = scores["mdi"]
    head = f"a text token gets {mdi:.2f} times the attention of an image token (MDI)"
    without = scores.get("mdi_without_first")
    if without is not None and scores["tokens_first"]:
        head += f", {without:.2f} times without the first position"
    tokens = f"{scores['tokens_image']:.0f} image tokens"
    return (
        f"Attention: {head}; {tokens} draw {scores['attention_image']:.0%} of it, "
        f"{scores.get('aei_image', 0.0):.2f} times their share of the tokens (AEI)."
    )


def _of_router(scores: Scores) -> str:
    names = [key.removesuffix("_image_weight") for key in scores if key.endswith("_image_weight")]
    degraded = [name for name in names if name != CLEAN]
    text = (
        f"The router weighs a sound picture {scores[f'{CLEAN}_image_weight']:.2f} and sound tags "
        f"{scores[f'{CLEAN}_text_weight']:.2f}"
    )
    if degraded:
        image = min(degraded, key=lambda name: scores[f"{name}_image_weight"])
        tags = min(degraded, key=lambda name: scores[f"{name}_text_weight"])
        text += (
            f"; least the picture under {image.replace('_', ' ')} ({scores[f'{image}_image_weight']:.2f}) and the tags "
            f"under {tags.replace('_', ' ')} ({scores[f'{tags}_text_weight']:.2f})"
        )
    return text + "."


def _bound(scores: Scores, key: str, end: str) -> float:
    return scores.get(f"{key}_{end}", scores[key])


def _figure(scores: Scores, key: str) -> str:
    return f"{scores[key]:.2f}"


def _percent(scores: Scores, key: str) -> str:
    value = f"{scores[key]:.0%}"
    if f"{key}_low" not in scores:
        return value
    return f"{value} [{scores[f'{key}_low']:.0%}, {scores[f'{key}_high']:.0%}]"
