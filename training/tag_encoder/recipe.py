"""The recipe of the tag-encoder stage: what `poise tag-encoder` does, section by section."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from ...modeling.soft_prompt import SCORE_ENCODINGS
from ..recipe_loading import (
    check_choice,
    check_number,
    check_output_folder,
    check_rates,
    check_scenes,
    check_training,
    made_arguments,
    read_sections,
    save_sections,
)
from .data import POSITIVES
from .model import NEGATIVES

GROUPS = ("tag_encoder", "score_embedding")
FIELDS = {
    "model": ("tag_encoder", "score_encoding", "sentence_encoder"),
    "triplet": ("margin", "p", "negatives", "positive"),
    "data": ("train", "evaluation", "held_out", "vocabulary", "invented", "scenes"),
    "learning_rates": GROUPS,
    "training": tuple(field.name for field in dataclasses.fields(TrainingArguments)),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"tag_encoder": None, "score_encoding": "attention_bias", "sentence_encoder": None},
    "triplet": {"margin": 1.0, "p": 2.0, "negatives": "random", "positive": "centroid"},
    "data": {"train": None, "evaluation": None, "held_out": 0.3, "vocabulary": None, "invented": 0.5, "scenes": {}},
    "learning_rates": {"tag_encoder": 5e-5, "score_embedding": 1e-3},
    "training": {},
}
TRAINING_DEFAULTS: dict[str, Any] = {
    "output_dir": "outputs/tag_encoder",
    "report_to": "none",
    "num_train_epochs": 5,
    "per_device_train_batch_size": 16,
    "dataloader_drop_last": True,  # a last batch of one image would have no negative
    "eval_strategy": "epoch",
    "eval_on_start": True,  # the curve begins with the encoder as it came
    "logging_steps": 10,
    "save_total_limit": 2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "seed": 42,
    "ddp_find_unused_parameters": False,
}


@dataclasses.dataclass
class TagEncoderRecipe:
    """
    model: `tag_encoder` (Hub id, folder, `tiny:tag_encoder`, `package:minilm`), `score_encoding`, `sentence_encoder`
        (chooses the centroid captions; by default the tag encoder before it learns).
    triplet: `margin`, `p`, `negatives` (random, semi_hard), `positive` (centroid, mean).
    data: `train` and `evaluation` (scenes, a JSON-lines file, a folder of annotated photos); without `evaluation` the
        share `held_out` of the images is kept apart; `vocabulary` and `invented`: false tags of photos; `scenes`.
    learning_rates: of the `tag_encoder`, and of the `score_embedding` where that is the encoding.
    training: fields of `transformers.TrainingArguments`.
    """

    model: dict[str, Any]
    triplet: dict[str, Any]
    data: dict[str, Any]
    learning_rates: dict[str, float]
    training: dict[str, Any]

    def save(self, path: str | os.PathLike) -> None:
        """Write the resolved recipe as YAML."""
        save_sections(dataclasses.asdict(self), path)

    @property
    def seed(self) -> int:
        return int(self.training.get("seed", TRAINING_DEFAULTS["seed"]))


def load_tag_encoder_recipe(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> TagEncoderRecipe:
    """
    The recipe of that name with `overrides` applied, checked.

    Raises:
        ValueError: unknown recipe, section or key (with the nearest known one), or a value that cannot be.
    """
    recipe = TagEncoderRecipe(**read_sections(name, overrides, FIELDS, DEFAULTS))
    if not recipe.model["tag_encoder"]:
        raise ValueError("model.tag_encoder is missing: name one by Hub id, folder, tiny:tag_encoder or package:minilm")
    if not recipe.data["train"]:
        raise ValueError("data.train is missing: give 'scenes', a JSON-lines file or a folder (or --data on the line)")
    check_choice("model.score_encoding", recipe.model["score_encoding"], SCORE_ENCODINGS)
    check_choice("triplet.negatives", recipe.triplet["negatives"], NEGATIVES)
    check_choice("triplet.positive", recipe.triplet["positive"], POSITIVES)
    check_number("triplet.margin", recipe.triplet["margin"], 0.0, above=True)
    check_number("triplet.p", recipe.triplet["p"], 1.0)
    check_number("data.held_out", recipe.data["held_out"], 0.0, 1.0)
    check_number("data.invented", recipe.data["invented"], 0.0, 1.0)
    check_scenes(recipe.data["scenes"])
    check_rates(recipe.learning_rates)
    if recipe.model["score_encoding"] == "embedding" and "score_embedding" not in recipe.learning_rates:
        raise ValueError(
            "learning_rates.score_embedding is missing, but model.score_encoding='embedding' starts it at zero: "
            "give it a rate"
        )
    check_output_folder(recipe.training.get("output_dir", TRAINING_DEFAULTS["output_dir"]))
    return recipe


def training_arguments(recipe: TagEncoderRecipe) -> TrainingArguments:
    """`TrainingArguments` of a recipe; the learning rate of the arguments is only the loggers' headline."""
    settings = {**TRAINING_DEFAULTS, **recipe.training}
    settings.setdefault("learning_rate", max(recipe.learning_rates.values()))
    check_training(settings)
    if int(settings["per_device_train_batch_size"]) < 2:
        raise ValueError(
            f"training.per_device_train_batch_size={settings['per_device_train_batch_size']} leaves no other image's "
            "caption in a batch: use 2 or more, 16 as published"
        )
    return made_arguments(TrainingArguments, settings)
