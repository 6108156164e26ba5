"""The model card: metadata that the Hub's parser accepts, and sections that say only what is known."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from .backbone_names import ROLES, base_models, in_words, public_name
from .cited_works import works_behind
from .data import CardData, EvaluationRow
from .escaping import Markdown, code, escape, one_line, path, python
from .tables import CLEAN, condition_table, is_score, markdown, score_table, verdict
from .training_data import SCENES

TEMPLATE = "model_card.md.jinja"
VARIANTS = ("finetune", "adapter", "quantized")
# Names of our scores -> names of the metrics that the Hub lists.
HUB_METRICS = {
    "vqa_accuracy": "accuracy",
    "multiple_choice_accuracy": "accuracy",
    "pope_accuracy": "accuracy",
    "pope_precision": "precision",
    "pope_recall": "recall",
    "pope_f1": "f1",
    "caption_cider_d": "cider",
    "caption_rouge_l": "rouge",
    **{f"caption_bleu_{order}": "bleu" for order in range(1, 5)},
}
PROJECTORS = {
    "mlp": "a two-layer MLP on the patch features, as in LLaVA",
    "aggregator": "LION's aggregator: the deep features attend to middle layers of the tower",
}
SOFT_PROMPTS = {
    "none": "none: the language model reads image tokens and text only",
    "static": "static: {length} learned vectors, the same for every image (LION)",
    "dynamic": "dynamic: {length} tokens made from the image's tags and their scores",
}
POOLINGS = {
    "queries": "learned queries attend to the tags",
    "tokens": "none, the first tag tokens themselves",
    "mean": "the mean over the tags (Dynamic LION)",
}
ROUTERS = {
    "none": "none: both streams reach the language model as they are",
    "gate": "gate: one weight per stream from the pooled features of both, which scales it",
    "channel": "channel (MoIR): channels that say little in one stream are refilled from the other",
    "reliability": (
        "reliability: a stream that has failed, judged by what image, tags and question say of each other, is left out "
        "for a learned null token, and tags that the image denies are not read"
    ),
}
SIMULATED = ". **Its tags' scores were simulated**, not made by a tagger: with a real one it may behave differently"
SCORE_ENCODINGS = {
    "text": "written after the tag's name",
    "embedding": "added to the tag's tokens as an embedding",
    "attention_bias": "added to the attention over the tags as log-scores",
}


def build_card(
    config: Any,
    card_data: CardData,
    repository: str,
    variant: str = "finetune",
    plots: Mapping[str, str] | None = None,
    sample: Mapping[str, Any] | None = None,
) -> ModelCard:
    """
    The card of a model.

    Args:
        config (`PoiseConfig`): of the model.
        card_data ([`CardData`]): what is known about it.
        repository (`str`): `user/name`, or the folder's name for a model that is published nowhere.
        variant (`str`, *optional*, defaults to `"finetune"`): relation to the backbones; "finetune", "adapter" or
            "quantized".
        plots (*optional*): paths in the repository by name: "robustness", "loss".
        sample (*optional*): `{"image": path in the repository, "question", "tags", "answer"}`.

    Returns:
        `huggingface_hub.ModelCard`, parsed by the Hub's own parser.

    Raises:
        ValueError: an unknown variant.

    Examples:
        >>> card = build_card(model.config, CardData(license="apache-2.0"), "user/name")
        >>> card.data.pipeline_tag
        'image-text-to-text'
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is not known: choose one of {', '.join(VARIANTS)}")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=escape
    )
    environment.filters.update(python=python, path=path, written=Markdown, markdown=markdown, table=score_table)
    template = environment.from_string((files("poise.hub_cards.card") / TEMPLATE).read_text(encoding="utf-8"))
    name = one_line(card_data.model_name or repository.split("/")[-1])
    metadata = build_metadata(config, card_data, name, variant)
    content = template.render(
        metadata=Markdown(metadata.to_yaml()),
        name=name,
        repository=repository,
        variant=variant,
        config=config,
        card=card_data,
        backbones=_backbones_in_words(config),
        treatment=_treatment(card_data, variant),
        architecture=_architecture(config),
        datasets=[_data_in_words(data) for data in card_data.datasets],
        training=_training_facts(card_data),
        router=ROUTERS.get(config.router_type, config.router_type),
        holds_up=condition_table(card_data.robustness),
        verdict=verdict(card_data.robustness),
        misuses=_misuses(config, card_data),
        plots=dict(plots or {}),
        sample=None if sample is None else dict(sample),
        unlike_scenes=bool(card_data.datasets) and all(data["name"] != SCENES for data in card_data.datasets),
        example=dict(sample or {"image": "image.png", "question": "what is in the image ?", "tags": []}),
        licenses=_licenses(config, card_data),
        works=Markdown("\n\n".join(works_behind(config, _uses_lora(card_data, variant), card_data.recipe))),
    )
    return ModelCard(content)


def build_metadata(config: Any, card_data: CardData, name: str, variant: str) -> ModelCardData:
    """The YAML block at the top of a card."""
    bases = base_models(config.backbones)
    tags = ["poise", "vision-language", "image-to-text", f"router-{config.router_type}"]
    tags += [f"soft-prompt-{config.soft_prompt_type}", *(["lora"] if variant == "adapter" else [])]
    rows = [row for row in card_data.evaluation if is_score(row.metric)]
    metrics = list(dict.fromkeys(_hub_metric(row.metric) for row in rows))
    return ModelCardData(
        model_name=name if rows else None,
        library_name="peft" if variant == "adapter" else "transformers",
        pipeline_tag="image-text-to-text",
        base_model=bases or None,
        base_model_relation=variant if bases else None,
        language=card_data.language or None,
        license=card_data.license,
        datasets=[data["hub_id"] for data in card_data.datasets if data.get("hub_id")] or None,
        metrics=metrics or None,
        tags=tags,
        eval_results=[_eval_result(row, card_data) for row in rows] or None,
    )


def _eval_result(row: EvaluationRow, card_data: CardData) -> EvalResult:
    name = row.dataset or (card_data.datasets[0]["name"] if card_data.datasets else "unnamed")
    hub_ids = {data["name"]: data["hub_id"] for data in card_data.datasets if data.get("hub_id")}
    kind, _, split = name.partition(":")  # drawn scenes are `scenes:SPLIT,name=value`
    # The Hub takes rows of one data set, configuration and split for one: a condition is a configuration.
    return EvalResult(
        task_type="image-text-to-text",
        dataset_type=hub_ids.get(name, kind.lower().replace(" ", "-")),
        dataset_name=name if row.condition == CLEAN else f"{name} ({row.condition})",
        dataset_config=None if row.condition == CLEAN else row.condition,
        dataset_split=split or None,
        metric_type=_hub_metric(row.metric),
        metric_name=row.metric,
        metric_value=round(row.value, 6),
    )


def _hub_metric(name: str) -> str:
    return "accuracy" if name.startswith("grounding_accuracy@") else HUB_METRICS.get(name, name)


def _backbones_in_words(config: Any) -> list[tuple[str, str]]:
    names = config.backbones or {}
    uses_tags = config.soft_prompt_type == "dynamic"
    return [(ROLES[role], in_words(role, names.get(role))) for role in ROLES if role != "tag_encoder" or uses_tags]


def _uses_lora(card_data: CardData, variant: str) -> bool:
    return variant == "adapter" or "adapters" in card_data.parameters or bool((card_data.recipe or {}).get("lora"))


def _treatment(card_data: CardData, variant: str) -> dict[str, str]:
    """What training did to each backbone, as far as it is known."""
    if not card_data.parameters:
        return dict.fromkeys(ROLES.values(), "")
    lora = ", frozen, with LoRA adapters" + ("" if variant == "adapter" else " merged in")
    return {
        ROLES["vision"]: ", fine-tuned" if "vision_tower" in card_data.parameters else ", frozen",
        ROLES["tag_encoder"]: ", fine-tuned" if "tag_encoder" in card_data.parameters else ", frozen",
        ROLES["text"]: lora if _uses_lora(card_data, variant) else ", frozen",
    }


def _data_in_words(data: Mapping[str, Any]) -> Markdown:
    parts = [code(data["hub_id"]) if data.get("hub_id") else escape(data["name"])]
    if data.get("split"):
        parts.append(escape(f"split {data['split']}"))
    if data.get("records"):
        parts.append(escape(f"{data['records']:,} records"))
    description = data.get("description") or ""
    between = "" if not description else " " if description.startswith("(") else ": "
    simulated = SIMULATED if data.get("tag_scores") == "simulated" else ""
    return Markdown(", ".join(parts) + between + escape(description) + simulated)


def _misuses(config: Any, card_data: CardData) -> list[str]:
    """What the model must not be used for, from what it was made of."""
    sentences = [
        "Decisions about people, and whatever is dangerous when the answer is wrong: medicine, law, traffic, security.",
        "Telling who somebody is, or guessing health, origin or belief from an image.",
    ]
    if card_data.datasets and all(data["name"] == SCENES for data in card_data.datasets):
        sentences.insert(0, "Photographs: it was trained on drawn scenes of coloured shapes alone.")
    if ((config.backbones or {}).get("text") or "").startswith("tiny:"):
        sentences.insert(1, "Conversation: its language model is tiny, and its vocabulary is that of drawn scenes.")
    if not card_data.robustness:
        sentences.append("Degraded images or a tagger that errs: how it answers then was not measured.")
    return sentences


def _architecture(config: Any) -> list[tuple[str, str]]:
    prompt = SOFT_PROMPTS.get(config.soft_prompt_type, config.soft_prompt_type)
    rows = [
        ("projector", PROJECTORS.get(config.projector_type, config.projector_type)),
        ("soft prompt", prompt.format(length=config.soft_prompt_length)),
    ]
    if config.soft_prompt_type == "dynamic":
        rows.append(("pooling of the tags", POOLINGS.get(config.soft_prompt_pooling, config.soft_prompt_pooling)))
        rows.append(("tag scores", SCORE_ENCODINGS.get(config.tag_score_encoding, config.tag_score_encoding)))
    router = ROUTERS.get(config.router_type, config.router_type)
    rows.append(("information router", router))
    tokens = f"{config.num_image_tokens} image tokens + {config.num_prompt_tokens} soft-prompt tokens"
    return [*rows, ("tokens per image", tokens)]


def _training_facts(card_data: CardData) -> list[tuple[str, str]]:
    """Rows of the training table; only what is known."""
    recipe = card_data.recipe or {}
    training = recipe.get("training") or {}
    parameters = dict(card_data.parameters)
    total = parameters.pop("total", None)
    trained = sum(parameters.values())
    groups = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    rates = ", ".join(f"{name} {number(_rate(rate))}" for name, rate in (recipe.get("learning_rates") or {}).items())
    lora = recipe.get("lora")
    batch = training.get("per_device_train_batch_size")
    accumulation = training.get("gradient_accumulation_steps", 1)
    facts = [
        ("parameters trained", f"{trained:,} of {total:,} ({groups})" if total and parameters else None),
        ("steps", f"{card_data.steps:,}" if card_data.steps else None),
        ("epochs", number(card_data.epochs) if card_data.epochs else None),
        ("batch size", f"{batch} per process × {accumulation} accumulated" if batch else None),
        ("learning rates", rates or None),
        ("LoRA", _lora_facts(lora) if lora else None),
        ("precision of the frozen language model", (recipe.get("model") or {}).get("quantization")),
        ("hardware", card_data.hardware),
        ("processes", card_data.processes),
        ("time", duration(card_data.seconds) if card_data.seconds else None),
        ("first → last training loss", _ends(card_data.losses)),
        ("first → last evaluation loss", _ends(card_data.eval_losses)),
        ("libraries", ", ".join(f"{name} {version}" for name, version in card_data.versions.items()) or None),
    ]
    unquantized = ("precision of the frozen language model", "none")
    return [(name, str(value)) for name, value in facts if value is not None and (name, value) != unquantized]


def _ends(losses: Sequence[Sequence[float]]) -> str | None:
    if not losses:
        return None
    return " → ".join(f"{number(loss)} (step {int(step)})" for step, loss in (losses[0], losses[-1]))


def _licenses(config: Any, card_data: CardData) -> list[tuple[Markdown, str]]:
    names = [public_name(name) for name in (config.backbones or {}).values() if name]
    shipped = "apache-2.0, as Poise itself"
    return [
        (code(name), shipped if name.startswith("tiny:") else card_data.backbone_licenses.get(name, "see its own card"))
        for name in dict.fromkeys(name for name in names if name)
    ]


def _lora_facts(lora: Mapping[str, Any]) -> str:
    kinds = [name for key, name in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")) if lora.get(key)]
    if lora.get("task_routed"):
        kinds.append("one for image-level and one for region-level tasks, mixed per task and block")
    return ", ".join([f"rank {lora['r']}, alpha {lora['alpha']}", *kinds])


def _rate(value: Any) -> float:
    """The peak rate of a group, which a recipe gives as a number or with decay and schedule."""
    return value["rate"] if isinstance(value, Mapping) else value


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as a reader would say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
