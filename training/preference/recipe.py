"""The recipe of the preference stage: what `poise preference` does, section by section."""

import dataclasses
from typing import Any

from ..parameter_groups import PARAMETER_GROUPS, group_settings
from ..recipe_loading import (
    TRAINING_DEFAULTS,
    TRAINING_FIELDS,
    Section,
    StageRecipe,
    check_scenes,
    number,
    section,
    unknown_name,
)  # fmt: skip
from ..sft.recipe import Lora
from .pairs import KINDS

SCENES = "scenes"


@section
class Model(Section):
    folder: str | None = None


@section
class Data(Section):
    train: Any = SCENES
    image_folder: str | None = None
    scenes: Any = dataclasses.field(default_factory=dict)
    kinds: list[str] = dataclasses.field(default_factory=lambda: list(KINDS))
    evaluation: Any = None
    evaluation_samples: int | None = number(300, least=1)
    max_length: int | None = number(None, least=1)
    max_new_tokens: int = number(6, least=1)


@section
class Dpo(Section):
    beta: float = number(0.1, above=0)
    loss_type: str | list[str] = dataclasses.field(default_factory=lambda: ["sigmoid"])
    loss_weights: list[float] | None = None
    label_smoothing: float = number(0.0, least=0, most=0.5)
    drop_streams: bool = False


@dataclasses.dataclass
class PreferenceRecipe(StageRecipe):
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

    model: Model
    data: Data
    lora: Lora
    learning_rates: dict[str, Any]
    dpo: Dpo
    training: dict[str, Any]

    KEYS = {"learning_rates": PARAMETER_GROUPS, "training": TRAINING_FIELDS}
    DEFAULTS = {
        "learning_rates": {"adapters": 1e-4, "new_modules": 1e-4},
        "training": {
            **TRAINING_DEFAULTS,
            "output_dir": "outputs/preference",
            "logging_steps": 10,
            "warmup_steps": 0.1,
            # TRL's own defaults would turn these on.
            "bf16": False,
            "activation_checkpointing": False,
            "remove_unused_columns": False,
        },
    }

    def __post_init__(self) -> None:
        if not self.model.folder:
            raise ValueError("model.folder is missing: name a finished model (or --model on the line)")
        if not self.data.train:
            raise ValueError(
                "data.train is missing: give 'scenes' or a JSON-lines file of pairs (or --data on the line)"
            )
        for kind in self.data.kinds:
            if kind not in KINDS:
                raise unknown_name("data.kinds: ", kind, KINDS)
        check_scenes(self.data.scenes, split=True)
        if isinstance(self.dpo.loss_type, str):
            self.dpo["loss_type"] = [self.dpo.loss_type]
        losses, weights = self.dpo.loss_type, self.dpo.loss_weights
        if weights is not None and len(weights) != len(losses):
            raise ValueError(
                f"dpo.loss_weights={weights!r} does not fit loss_type={losses!r}: give one weight per loss"
            )
        if self.lora is None or "adapters" not in self.learning_rates:
            raise ValueError("learning_rates.adapters is missing: DPO's reference is the model without the adapter")
        group_settings(self.learning_rates)
        if "vision_tower" in self.learning_rates:
            raise ValueError(
                "learning_rates.vision_tower is given, but preference training keeps the vision tower frozen"
            )


load_preference_recipe = PreferenceRecipe.load
