"""The recipe of the tag-encoder stage: what `poise tag-encoder` does, section by section."""

import dataclasses
from typing import Any

from transformers import TrainingArguments

from ...modeling.soft_prompt import SCORE_ENCODINGS
from ..parameter_groups import group_settings, highest_rate
from ..recipe_loading import (
    TRAINING_DEFAULTS,
    TRAINING_FIELDS,
    Section,
    StageRecipe,
    check_scenes,
    choice,
    number,
    section,
)
from ..run_start import made_arguments
from .data import POSITIVES
from .model import NEGATIVES

GROUPS = ("tag_encoder", "score_embedding")


@section
class Model(Section):
    tag_encoder: str | None = None
    score_encoding: str = choice("attention_bias", SCORE_ENCODINGS)
    sentence_encoder: str | None = None


@section
class Triplet(Section):
    margin: float = number(1.0, above=0)
    p: float = number(2.0, least=1)
    negatives: str = choice("random", NEGATIVES)
    positive: str = choice("centroid", POSITIVES)


@section
class Data(Section):
    train: Any = None
    evaluation: Any = None
    held_out: float = number(0.3, least=0, most=1)
    vocabulary: Any = None
    invented: float = number(0.5, least=0, most=1)
    scenes: Any = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TagEncoderRecipe(StageRecipe):
    """
    model: `tag_encoder` (Hub id, folder, `tiny:tag_encoder`, `package:minilm`), `score_encoding`, `sentence_encoder`
        (chooses the centroid captions; by default the tag encoder before it learns).
    triplet: `margin`, `p`, `negatives` (random, semi_hard), `positive` (centroid, mean).
    data: `train` and `evaluation` (scenes, a JSON-lines file, a folder of annotated photos); without `evaluation` the
        share `held_out` of the images is kept apart; `vocabulary` and `invented`: false tags of photos; `scenes`.
    learning_rates: of the `tag_encoder`, and of the `score_embedding` where that is the encoding.
    training: fields of `transformers.TrainingArguments`.
    """

    model: Model
    triplet: Triplet
    data: Data
    learning_rates: dict[str, Any]
    training: dict[str, Any]

    KEYS = {"learning_rates": GROUPS, "training": TRAINING_FIELDS}
    DEFAULTS = {
        "learning_rates": {"tag_encoder": 5e-5, "score_embedding": 1e-3},
        "training": {
            **TRAINING_DEFAULTS,
            "output_dir": "outputs/tag_encoder",
            "num_train_epochs": 5,
            "per_device_train_batch_size": 16,
            "dataloader_drop_last": True,  # a last batch of one image would have no negative
            "eval_strategy": "epoch",
            "eval_on_start": True,  # the curve begins with the encoder as it came
            "logging_steps": 10,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
        },
    }

    def __post_init__(self) -> None:
        if not self.model.tag_encoder:
            raise ValueError(
                "model.tag_encoder is missing: name one by Hub id, folder, tiny:tag_encoder or package:minilm"
            )
        if not self.data.train:
            raise ValueError(
                "data.train is missing: give 'scenes', a JSON-lines file or a folder (or --data on the line)"
            )
        check_scenes(self.data.scenes)
        if not self.learning_rates:
            raise ValueError("learning_rates is empty: nothing would be trained; name at least one group")
        group_settings(self.learning_rates)
        if self.model.score_encoding == "embedding" and "score_embedding" not in self.learning_rates:
            raise ValueError(
                "learning_rates.score_embedding is missing, but model.score_encoding='embedding' starts it at zero: "
                "give it a rate"
            )


load_tag_encoder_recipe = TagEncoderRecipe.load


def training_arguments(recipe: TagEncoderRecipe) -> TrainingArguments:
    """`TrainingArguments` of a recipe; the learning rate of the arguments is only the loggers' headline."""
    settings = {"learning_rate": highest_rate(recipe.learning_rates), **recipe.training}
    args = made_arguments(TrainingArguments, settings)
    if args.per_device_train_batch_size < 2:
        raise ValueError(
            f"training.per_device_train_batch_size={args.per_device_train_batch_size} leaves no other image's "
            "caption in a batch: use 2 or more, 16 as published"
        )
    return args
