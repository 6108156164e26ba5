"""Which modality dominates, in plain words with the figures behind them.

What dominance measured, as tables for a terminal and rows of a model card.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..intervals import Score, card_row, format_table, score_text
from ..robustness.degraded_records import CLEAN
from .attention import GROUPS, THIRDS
from .coalitions import BASELINES, coalition_name, coalitions

Scores = Mapping[str, float]
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
    rivals = _rivals(players)
    scores = {name: Score.read(coalitions, f"{base}_accuracy_value_{name}") for name in rivals}
    if not any(score.bounds[0] > 0 for score in scores.values()):
        return "none"
    first, second = sorted(rivals, key=lambda name: -scores[name].value)[:2]
    apart = scores[first].bounds[0] > scores[second].bounds[1]
    return first if apart and scores[first].value > _MUCH_MORE * scores[second].value else "balanced"


def _rivals(players: Sequence[str]) -> list[str]:
    return [name for name in players if name != "question" or "tags" not in players]


def _of_coalitions(scores: Scores, players: Sequence[str]) -> list[str]:
    base = baseline_of(scores)
    chosen = dominant(scores, players)
    shares = [
        f"{name} " + score_text(scores, f"{base}_accuracy_share_{name}", ".0%")
        for name in players
        if f"{base}_accuracy_share_{name}" in scores
    ]
    behind = f" (share of what the input adds to accuracy: {', '.join(shares)})" if shares else ""
    head = {
        "none": f"Neither {' nor '.join(_rivals(players))} make the answers better than wrong ones do",
        "balanced": "No modality dominates the answers",
    }.get(chosen, f"The {chosen} {'dominate' if chosen == 'tags' else 'dominates'} the answers")
    sentences = [f"{head}{behind}."]
    everything = scores["accuracy"]
    verb = {"swap": "swapped", "mean": "replaced by its mean"}[base]
    drops = []
    for name in players:
        key = f"{base}_accuracy_{'+'.join(other for other in players if other != name)}"
        drops.append(f"{scores[key]:.2f} with the {name} {verb}")
    sentences.append(f"Accuracy is {everything:.2f} with everything right, {', '.join(drops)}.")
    if "conflict_accuracy" in scores:
        sentences.append(
            f"Where the prior is wrong ({scores['conflict_samples']:.0f} samples) "
            f"{score_text(scores, 'conflict_accuracy', '.0%')} of the answers are right and "
            f"{score_text(scores, 'conflict_prior', '.0%')} follow the prior."
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
        f"The router weighs a sound image {scores[f'{CLEAN}_image_weight']:.2f} and sound tags "
        f"{scores[f'{CLEAN}_text_weight']:.2f}"
    )
    if degraded:
        image = min(degraded, key=lambda name: scores[f"{name}_image_weight"])
        tags = min(degraded, key=lambda name: scores[f"{name}_text_weight"])
        text += (
            f"; least the image under {image.replace('_', ' ')} ({scores[f'{image}_image_weight']:.2f}) and the tags "
            f"under {tags.replace('_', ' ')} ({scores[f'{tags}_text_weight']:.2f})"
        )
    return text + "."


def measured_baselines(scores: Scores) -> list[str]:
    return [name for name in BASELINES if f"{name}_accuracy_none" in scores]


def conditions_of(router: Scores) -> list[str]:
    return [key.removesuffix("_image_weight") for key in router if key.endswith("_image_weight")]


def coalition_table(scores: Scores, players: Sequence[str]) -> str:
    """Accuracy and log-likelihood by coalition; Shapley shares below."""
    baselines = measured_baselines(scores)
    headers = ["what is right"]
    headers += [f"{measure}, rest {_SAID[baseline]}" for baseline in baselines for measure in ("accuracy", "nats")]
    rows = []
    for some in coalitions(players):
        name = coalition_name(some)
        everything = len(some) == len(players)
        cells = []
        for baseline in baselines:
            for measure in ("accuracy", "log_likelihood"):
                cells.append(score_text(scores, measure if everything else f"{baseline}_{measure}_{name}"))
        rows.append([name.replace("+", " + "), *cells])
    for player in players:
        cells = []
        for baseline in baselines:
            for measure in ("accuracy", "log_likelihood"):
                cells.append(score_text(scores, f"{baseline}_{measure}_share_{player}", ".0%") or "–")
        rows.append([f"Shapley share of {player}", *cells])
    title = f"Coalitions ({scores['samples']:.0f} samples; in brackets 95 % intervals)"
    return f"{title}\n{format_table(headers, rows)}"


_SAID = {"mean": "mean token", "swap": "swapped"}


def attention_table(scores: Scores) -> str:
    """MDI and AEI by thirds of the layers and by layer."""
    names = [("all layers", "")]
    names += [(f"{third} third", f"_{third}") for third in THIRDS if f"mdi_{third}" in scores]
    names += [(f"layer {layer}", f"_layer_{layer}") for layer in range(int(scores["layers"]))]
    texts = [group for group in GROUPS if group != "image" and f"aei_{group}" in scores]
    # Where the image stands first, no position of text parks spare attention.
    kinds = [("mdi", "MDI"), ("mdi_without_first", "MDI without the first")][: 2 if scores["tokens_first"] else 1]
    kinds += [("aei_image", "AEI image"), ("aei_text", "AEI text")]
    headers = ["layers", *(title for _, title in kinds)]
    headers += [f"AEI {group.replace('_', ' ')}" for group in texts]
    rows = [
        [
            label,
            *(score_text(scores, f"{key}{name}") for key, _ in kinds),
            *(f"{scores[f'aei_{group}{name}']:.2f}" if f"aei_{group}{name}" in scores else "" for group in texts),
        ]
        for label, name in names
    ]
    counts = ", ".join(
        f"{scores[f'tokens_{group}']:.1f} {group.replace('_', ' ')}"
        for group in GROUPS
        if scores[f"tokens_{group}"] > 0
    )
    return f"Attention of the positions that generate ({counts} tokens)\n{format_table(headers, rows)}"


def router_table(scores: Scores, severity: int) -> str:
    """The router's weights by condition."""
    rows = [
        [
            name.replace("_", " "),
            score_text(scores, f"{name}_image_weight"),
            score_text(scores, f"{name}_text_weight"),
        ]
        for name in conditions_of(scores)
    ]
    title = f"Router: mean weights, degradations at severity {severity}"
    return f"{title}\n{format_table(['condition', 'image', 'tags'], rows)}"


def dominance_rows(
    coalition_scores: Scores | None,
    attention: Scores | None,
    router: Scores | None,
    players: Sequence[str],
    dataset: str,
) -> list[dict[str, Any]]:
    """Rows for the model card, as `EvaluationRow` of the cards takes them."""
    rows: list[dict[str, Any]] = []

    def add(scores: Scores, condition: str, metric: str, key: str, count: str = "samples") -> None:
        if key in scores:
            rows.append(card_row(scores, key, condition, metric, dataset, count))

    if coalition_scores is not None:
        accuracy = "vqa_accuracy"
        add(coalition_scores, "everything right", accuracy, "accuracy")
        for name in players:
            left = coalition_name(tuple(other for other in players if other != name))
            for baseline in measured_baselines(coalition_scores):
                add(coalition_scores, f"{name} {_SAID[baseline]}", accuracy, f"{baseline}_accuracy_{left}")
        add(coalition_scores, "prior is wrong", accuracy, "conflict_accuracy", "conflict_samples")
        add(coalition_scores, "prior is wrong", "follows the prior", "conflict_prior", "conflict_samples")
        for name in players:
            for baseline in measured_baselines(coalition_scores):
                key, metric = f"{baseline}_accuracy_share_{name}", f"Shapley share, rest {_SAID[baseline]}"
                add(coalition_scores, f"{name} alone", metric, key)
    if attention is not None:
        for key, metric in (("mdi", "MDI"), ("aei_image", "AEI of the image")):
            add(attention, "attention", metric, key)
    if router is not None:
        add(router, CLEAN, "router image_weight", f"{CLEAN}_image_weight")
        add(router, CLEAN, "router text_weight", f"{CLEAN}_text_weight")
    return rows
