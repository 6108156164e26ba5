"""The recipe of the alignment stage: what `poise align` does, section by section."""

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ...modeling import PoiseDualEncoderConfig
from ...modeling.configuration_dual_encoder import TEXT_PATHS, VISION_PATHS
from ...modeling.contrastive_losses import CONTRASTIVE_LOSSES
from ...processing.scenes.layout import COLORS, SHAPES
from ...processing.taggers import check_tagger
from ..feature_cache.cache import STORAGE_DTYPES
from ..recipe_loading import (
    check_choice,
    check_kind,
    check_number,
    check_output_folder,
    check_scenes,
    check_training,
    made_arguments,
    read_sections,
    save_sections,
)

HEAD_FIELDS = (
    "embed_dim", "vision_feature_layer", "text_feature_layer", "vision_paths", "text_paths", "vision_prefix_tokens",
    "projector_dropout", "loss_type", "logit_scale_init_value", "logit_bias_init_value", "max_text_length",
)  # fmt: skip
FIELDS = {
    "model": ("vision", "text", "dtype", *HEAD_FIELDS),
    "regularization": ("fusemix_alpha", "structure_weight", "structure_warmup_steps", "structure_levels",
                       "structure_temperature"),
    "data": ("train", "evaluation", "image_folder", "scenes", "evaluation_size", "caption_parts", "feature_cache",
             "feature_dtype", "feature_batch_size"),
    "tagger": ("vocabulary", "templates", "threshold", "max_tags"),
    "training": tuple(field.name for field in dataclasses.fields(TrainingArguments)),
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"vision": None, "text": None, "dtype": "float32"},
    # Of STRUCTURE the values of its published code, whose weight is 10.
    "regularization": {"fusemix_alpha": None, "structure_weight": 0.0, "structure_warmup_steps": 500,
                       "structure_levels": 1, "structure_temperature": 0.07},
    "data": {"train": None, "evaluation": None, "image_folder": None, "scenes": {}, "evaluation_size": 500,
             "caption_parts": False, "feature_cache": "outputs/features", "feature_dtype": "float16",
             "feature_batch_size": 64},
    "tagger": {"vocabulary": None, "templates": ["a photo of a {}."], "threshold": 0.1, "max_tags": 16},
    "training": {},
}  # fmt: skip
TRAINING_DEFAULTS: dict[str, Any] = {
    "output_dir": "outputs/align",
    "report_to": "none",
    "learning_rate": 1e-3,  # arXiv 2409.19425, section 5
    "num_train_epochs": 15,
    "per_device_train_batch_size": 1024,
    "per_device_eval_batch_size": 1024,
    "dataloader_drop_last": True,  # a short last batch would be an easier question than the others
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 1e-4,
    "logging_steps": 50,
    "save_total_limit": 2,
    "seed": 42,
    "ddp_find_unused_parameters": False,
}


@dataclasses.dataclass
class AlignRecipe:
    """
    model: `vision` and `text` (Hub id, folder, `tiny:NAME`), `dtype`, and fields of `PoiseDualEncoderConfig`.
    regularization: `fusemix_alpha` mixes pairs (see `fuse_mix`); `structure_weight`, reached over
        `structure_warmup_steps`, `structure_levels`, `structure_temperature` keep neighbourhoods (see
        `structure_regularizer`).
    data: `train` and `evaluation` ("scenes", a JSON-lines file of task records with captions, a folder with
        `train.jsonl` and `validation.jsonl`), `caption_parts` (phrases of captions are texts, too), knobs, and where
        and how frozen features are stored.
    tagger: `vocabulary` ("scenes", a list, or a file: JSON or one name a line), `templates`, `threshold`, `max_tags`.
    training: fields of `transformers.TrainingArguments`.
    """

    model: dict[str, Any]
    regularization: dict[str, Any]
    data: dict[str, Any]
    tagger: dict[str, Any]
    training: dict[str, Any]

    def save(self, path: str | os.PathLike) -> None:
        """Write the resolved recipe as YAML."""
        save_sections(dataclasses.asdict(self), path)

    @property
    def seed(self) -> int:
        return int(self.training.get("seed", TRAINING_DEFAULTS["seed"]))

    @property
    def head_fields(self) -> dict[str, Any]:
        """The fields of the dual encoder's configuration that the recipe writes."""
        return {name: self.model[name] for name in HEAD_FIELDS if self.model.get(name) is not None}


def load_align_recipe(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> AlignRecipe:
    """
    The recipe of that name with `overrides` applied, checked.

    Raises:
        ValueError: unknown recipe, section or key (with the nearest known one), or a value that cannot be.
    """
    recipe = AlignRecipe(**read_sections(name, overrides, FIELDS, DEFAULTS))
    for part in ("vision", "text"):
        if not recipe.model[part]:
            raise ValueError(f"model.{part} is missing: name an encoder by Hub id, folder or tiny:NAME")
    if not recipe.data["train"]:
        raise ValueError("data.train is missing: give 'scenes', a JSON-lines file or a folder (or --data on the line)")
    for key, choices in (
        ("loss_type", tuple(CONTRASTIVE_LOSSES)), ("vision_paths", VISION_PATHS), ("text_paths", TEXT_PATHS),
    ):  # fmt: skip
        if recipe.model.get(key) is not None:
            check_choice(f"model.{key}", recipe.model[key], choices)
    check_choice("data.feature_dtype", recipe.data["feature_dtype"], tuple(STORAGE_DTYPES))
    # What the configuration can see without the encoders' own shapes is seen here.
    for field in dataclasses.fields(PoiseDualEncoderConfig):
        if recipe.model.get(field.name) is not None and field.name in HEAD_FIELDS:
            check_kind(f"model.{field.name}", recipe.model[field.name], field.type)
            if float in (field.type, *typing.get_args(field.type)):
                recipe.model[field.name] = float(recipe.model[field.name])  # the configuration takes 3 for no float
    if not isinstance(getattr(torch, str(recipe.model["dtype"]), None), torch.dtype):
        raise ValueError(f"model.dtype={recipe.model['dtype']!r} is not a torch dtype: write float32 or bfloat16")
    PoiseDualEncoderConfig(**{k: v for k, v in recipe.head_fields.items() if k in ("embed_dim", "projector_dropout")})
    check_scenes(recipe.data["scenes"])
    _check_evaluation(recipe)
    settings = recipe.regularization
    if settings["fusemix_alpha"] is not None:
        check_number("regularization.fusemix_alpha", settings["fusemix_alpha"], 0.0, above=True)
    check_number("regularization.structure_weight", settings["structure_weight"], 0.0)
    check_number("regularization.structure_warmup_steps", settings["structure_warmup_steps"], 0)
    check_number("regularization.structure_levels", settings["structure_levels"], 1)
    check_number("regularization.structure_temperature", settings["structure_temperature"], 0.0, above=True)
    check_number("tagger.threshold", recipe.tagger["threshold"], 0.0, 1.0)
    check_number("tagger.max_tags", recipe.tagger["max_tags"], 1)
    check_output_folder(recipe.training.get("output_dir", TRAINING_DEFAULTS["output_dir"]))
    vocabulary = load_vocabulary(recipe.tagger["vocabulary"])
    if vocabulary:  # what the tagger would refuse when everything is trained
        check_tagger(vocabulary, recipe.tagger["templates"], recipe.tagger["threshold"], recipe.tagger["max_tags"])
    return recipe


def _check_evaluation(recipe: AlignRecipe) -> None:
    """Own images that are evaluated on drawn scenes say nothing; most often only --data was set."""
    train, evaluation = (str(recipe.data[key]) for key in ("train", "evaluation"))
    if evaluation.partition(":")[0] == "scenes" and train.partition(":")[0] != "scenes":
        raise ValueError(
            f"data.evaluation={evaluation!r} are drawn scenes, but data.train={train!r} is not: name held-out records "
            "of the same kind (--data.evaluation FILE), or none (--data.evaluation null)"
        )


def load_vocabulary(source: Any) -> list[str]:
    """
    Names of tags: a list, "scenes" (every colour with every shape), or a file: JSON, or one name a line.

    Raises:
        ValueError: no such file, no names, or a name twice.
    """
    if source is None:
        return []
    if source == "scenes":
        return [f"{color} {shape}" for shape in SHAPES for color in COLORS]
    if isinstance(source, str):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"tagger.vocabulary={source!r} is no file: give a list of names, 'scenes' or a file")
        text = path.read_text(encoding="utf-8")
        source = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    names = list(dict.fromkeys(" ".join(str(name).split()) for name in source))
    if not names:
        raise ValueError("tagger.vocabulary holds no names: give at least one, or leave it out")
    return names


def training_arguments(recipe: AlignRecipe) -> TrainingArguments:
    """
    `TrainingArguments` of a recipe.

    Raises:
        ValueError: a value that cannot be, or gradient accumulation.
    """
    settings = {**TRAINING_DEFAULTS, **recipe.training}
    check_training(settings)
    if int(settings.get("gradient_accumulation_steps", 1)) > 1:
        raise ValueError(
            f"training.gradient_accumulation_steps={settings['gradient_accumulation_steps']}: a contrastive loss "
            "compares within a batch, and accumulated small ones are not a large one; raise per_device_train_batch_size"
        )
    if int(settings["per_device_train_batch_size"]) < 2:
        raise ValueError(
            f"training.per_device_train_batch_size={settings['per_device_train_batch_size']} leaves nothing to compare "
            "with: use 2 or more"
        )
    return made_arguments(TrainingArguments, {**settings, "remove_unused_columns": False})
