"""The recipe of `poise sft --config vlm_router`: a router, a soft prompt and LoRA on a pretrained VLM."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ...modeling.information_router import ROUTERS
from ..parameter_groups import group_settings
from ..recipe_loading import TRAINING_DEFAULTS, TRAINING_FIELDS, Section, StageRecipe, choice, number, section
from ..sft.recipe import Lora


@section
class Model(Section):
    vlm: str | None = None
    tag_encoder: str | None = "sentence-transformers/all-MiniLM-L6-v2"
    router_type: str = choice("reliability", tuple(ROUTERS))
    soft_prompt_length: int = number(8, least=1)
    reader_width: int = number(64, least=1)
    dtype: str = "auto"
    trust_remote_code: bool = False


@section
class Data(Section):
    train: Any = None
    evaluation: Any = None
    evaluation_samples: int | None = number(300, least=1)
    max_new_tokens: int = number(16, least=1)


@section
class VlmLora(Lora):
    r: int | None = number(None, least=1)  # type: ignore[assignment]


@dataclasses.dataclass
class VlmRouterRecipe(StageRecipe):
    """
    model: `vlm` and `tag_encoder` by Hub id or folder, and fields of [`VlmRouterConfig`]; `dtype` of the VLM's weights.
    data: `train` and `evaluation`, sources as `poise evaluate --data` takes them.
    lora: rank `r` and so on, in the attention of the language model; `r: null` for none.
    learning_rates: `new_modules` (router, soft prompt, their reader), `soft_prompt` for it alone, `adapters` for LoRA.
    training: fields of `transformers.TrainingArguments`.
    """

    model: Model
    data: Data
    lora: VlmLora
    learning_rates: dict[str, Any]
    training: dict[str, Any]

    KEYS = {"learning_rates": ("new_modules", "soft_prompt", "adapters"), "training": TRAINING_FIELDS}
    DEFAULTS = {
        "learning_rates": {"new_modules": 1e-3},
        "training": {
            **TRAINING_DEFAULTS,
            "output_dir": "outputs/vlm_router",
            "logging_steps": 10,
            "warmup_steps": 0.05,
            "remove_unused_columns": False,
        },
    }

    def __post_init__(self) -> None:
        for key, option in (("vlm", "--vlm"), ("tag_encoder", "--tag_encoder")):
            if not self.model[key]:
                raise ValueError(
                    f"model.{key}={self.model[key]!r}: name a Hub id or a folder (or {option} on the line)"
                )
        if self.data.train is None:
            raise ValueError("data.train is missing: name task records with tags (or --data on the line)")
        for key in ("train", "evaluation"):
            if isinstance(self.data[key], Mapping | list):
                self.data[key] = json.dumps(self.data[key])  # which is YAML, as a source in braces
        if (self.lora.r is None) == ("adapters" in self.learning_rates):
            raise ValueError(
                f"lora.r={self.lora.r} and learning_rates of {', '.join(self.learning_rates)}: LoRA needs both "
                "lora.r and learning_rates.adapters, and without it neither stands"
            )
        group_settings(self.learning_rates)


load_vlm_router_recipe = VlmRouterRecipe.load
