"""The recipe of the preference stage: what `poise preference` does, section by section."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from ..parameter_groups import PARAMETER_GROUPS, GroupSettings
from ..recipe_loading import check_number, check_output_folder, check_scenes, read_sections, save_sections, unknown_name
from ..sft.recipe import check_lora
from .pairs import KINDS

PREFERENCE_RECIPE_FILE = "preference.yaml"  # beside `recipe.yaml`, which stays that of the fine-tuning
SCENES = "scenes"
FIELDS = {
    "model": ("folder",),
    "data": ("train", "image_folder", "scenes", "kinds", "evaluation", "evaluation_samples", "max_length",
             "max_new_tokens"),
    "lora": ("r", "alpha", "dropout", "target_modules"),
    "learning_rates": PARAMETER_GROUPS,
    "dpo": ("beta", "loss_type", "loss_weights", "label_smoothing", "drop_streams"),
    "training": tuple(field.name for field in dataclasses.fields(TrainingArguments)),
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"folder": None},
    "data": {"train": SCENES, "image_folder": None, "scenes": {}, "kinds": list(KINDS), "evaluation": None,
             "evaluation_samples": 300, "max_length": None, "max_new_tokens": 6},
    "lora": {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": None},
    "learning_rates": {"adapters": 1e-4, "new_modules": 1e-4},
    "dpo": {"beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0, "drop_streams": False},
    "training": {},
}  # fmt: skip
TRAINING_DEFAULTS: dict[str, Any] = {
    "output_dir": "outputs/preference",
    "report_to": "none",
    "logging_steps": 10,
    "save_total_limit": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "seed": 42,
    # TRL's own defaults would turn these on.
    "bf16": False,
    "activation_checkpointing": False,
    "ddp_find_unused_parameters": False,
    "remove_unused_columns": False,
}


@dataclasses.dataclass
class PreferenceRecipe:
    """
    model: `folder`, a finished model that fine-tuning wrote.
    data: `train` ("scenes" or a JSON-lines file of pairs), `scenes` (settings of the drawn ones, `size` and `split`
        among them), `kinds` of rejected answers (prior, tag), `evaluation` (scenes:SPLIT or a JSON-lines file of task
        records, or nothing), lengths.
    lora: rank and so on. learning_rates: a rate per group; a group that is not named stays as it is.
    dpo: `beta`, `loss_type` and `loss_weights` (lists), `label_smoothing` as in TRL; `drop_streams`: whether the
        reliability router goes on dropping streams and observing, as in fine-tuning, or routes as at inference.
    training: fields of `transformers.TrainingArguments`.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    lora: dict[str, Any]
    learning_rates: dict[str, Any]
    dpo: dict[str, Any]
    training: dict[str, Any]

    def save(self, path: str | os.PathLike) -> None:
        """Write the resolved recipe as YAML."""
        save_sections(dataclasses.asdict(self), path)

    @property
    def seed(self) -> int:
        return int(self.training.get("seed", TRAINING_DEFAULTS["seed"]))


def load_preference_recipe(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> PreferenceRecipe:
    """
    The recipe of that name with `overrides` applied, checked.

    Raises:
        ValueError: unknown recipe, section or key (with the nearest known one), or a value that cannot be.
    """
    recipe = PreferenceRecipe(**read_sections(name, overrides, FIELDS, DEFAULTS))
    if not recipe.model["folder"]:
        raise ValueError("model.folder is missing: name a finished model (or --model on the line)")
    if not recipe.data["train"]:
        raise ValueError("data.train is missing: give 'scenes' or a JSON-lines file of pairs (or --data on the line)")
    for kind in recipe.data["kinds"]:
        if kind not in KINDS:
            raise unknown_name("data.kinds:", kind, KINDS)
    check_scenes(recipe.data["scenes"], split=True)
    check_number("dpo.beta", recipe.dpo["beta"], 0.0, above=True)
    check_number("dpo.label_smoothing", recipe.dpo["label_smoothing"], 0.0, 0.5)
    if isinstance(recipe.dpo["loss_type"], str):
        recipe.dpo["loss_type"] = [recipe.dpo["loss_type"]]
    losses, weights = recipe.dpo["loss_type"], recipe.dpo["loss_weights"]
    if weights is not None and len(weights) != len(losses):
        raise ValueError(f"dpo.loss_weights={weights!r} does not fit loss_type={losses!r}: give one weight per loss")
    if not isinstance(recipe.dpo["drop_streams"], bool):
        raise ValueError(f"dpo.drop_streams={recipe.dpo['drop_streams']!r} must be true or false")
    check_lora(recipe.lora)
    if "adapters" not in recipe.learning_rates:
        raise ValueError("learning_rates.adapters is missing: DPO's reference is the model without the adapter")
    for group, value in recipe.learning_rates.items():
        GroupSettings.of(group, value)
    if "vision_tower" in recipe.learning_rates:
        raise ValueError("learning_rates.vision_tower is given, but preference training keeps the vision tower frozen")
    check_output_folder(recipe.training.get("output_dir", TRAINING_DEFAULTS["output_dir"]))
    return recipe
