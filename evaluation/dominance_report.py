"""What dominance measured, as tables for a terminal and rows of a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from poise.evaluation.attention_dominance import GROUPS, THIRDS
from poise.evaluation.coalition_dominance import BASELINES, coalition_name
from poise.evaluation.degraded_records import CLEAN
from poise.evaluation.robustness_report import with_interval
from poise.evaluation.score_table import format_table
from poise.evaluation.shapley import coalitions

Scores = Mapping[str, float]


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
                cells.append(with_interval(scores, measure if everything else f"{baseline}_{measure}_{name}"))
        rows.append([name.replace("+", " + "), *cells])
    for player in players:
        cells = []
        for baseline in baselines:
            for measure in ("accuracy", "log_likelihood"):
                cells.append(with_interval(scores, f"{baseline}_{measure}_share_{player}", percent=True) or "–")
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
    # Where the picture stands first, no position of text parks spare attention.
    kinds = [("mdi", "MDI"), ("mdi_without_first", "MDI without the first")][: 2 if scores["tokens_first"] else 1]
    kinds += [("aei_image", "AEI image"), ("aei_text", "AEI text")]
    headers = ["layers", *(title for _, title in kinds)]
    headers += [f"AEI {group.replace('_', ' ')}" for group in texts]
    rows = [
        [
            label,
            *(with_interval(scores, f"{key}{name}") for key, _ in kinds),
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
            with_interval(scores, f"{name}_image_weight"),
            with_interval(scores, f"{name}_text_weight"),
        ]
        for name in conditions_of(scores)
    ]
    title = f"Router: mean weights, degradations at severity {severity}"
    return f"{title}\n{format_table(['condition', 'picture', 'tags'], rows)}"


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
        if key not in scores:
            return
        bounds = {end: scores[f"{key}_{end}"] for end in ("low", "high") if f"{key}_{end}" in scores}
        fields = {"condition": condition, "metric": metric, "value": scores[key], "n": int(scores[count])}
        rows.append({**fields, **bounds, "dataset": dataset})

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
        for key, metric in (("mdi", "MDI"), ("aei_image", "AEI of the picture")):
            add(attention, "attention", metric, key)
    if router is not None:
        add(router, CLEAN, "router image_weight", f"{CLEAN}_image_weight")
        add(router, CLEAN, "router text_weight", f"{CLEAN}_text_weight")
    return rows
