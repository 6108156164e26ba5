"""Do the named backbones exist, and are they what a recipe wants of them? Asked of their configurations alone."""

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from poise.training.adapters import lora_pattern
from poise.training.assembly import backbones_of
from poise.training.checkpoint_config import SUGGESTED, read_config
from poise.training.recipe import Recipe


def check_backbones(recipe: Recipe) -> None:
    """
    Raises:
        ValueError: a backbone cannot be found, or is of another kind; packing with an encoder-decoder; adapters on
            layers that the language model does not have.
    """
    configs = {name: read_config(f"model.{name}", source) for name, source in backbones_of(recipe).items() if source}
    text = configs["text"]
    language_models = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    if text.model_type not in language_models and not getattr(text, "auto_map", None):
        raise _other_kind(recipe, "text", text)
    tags = configs.get("tag_encoder")
    if tags is not None and not hasattr(tags, "vocab_size") and not hasattr(tags, "text_config"):
        raise _other_kind(recipe, "tag_encoder", tags)
    if recipe.data["packing"] is not None and text.is_encoder_decoder:
        raise ValueError(
            f"data.packing={recipe.data['packing']} needs a decoder-only language model, and model.text="
            f"{recipe.model['text']!r} is an encoder-decoder: leave packing out"
        )
    if recipe.lora is not None and recipe.lora["target_modules"]:
        check_targets(recipe.lora["target_modules"], text)


def check_targets(targets: Any, text_config: Any) -> None:
    """Raises a `ValueError` where LoRA would find no layer; the language model is built without any weights for it."""
    model_class = AutoModelForSeq2SeqLM if text_config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        language_model = model_class.from_config(text_config)
    names = [name for name, module in language_model.named_modules() if isinstance(module, torch.nn.Linear)]
    pattern = lora_pattern(targets) if isinstance(targets, list | tuple) else targets
    if not any(re.fullmatch(pattern, f"model.language_model.{name}") for name in names):
        known = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise ValueError(
            f"lora.target_modules={targets!r} fits no layer of the language model: name some of {', '.join(known)}, or "
            "leave it out for all of them"
        )


def _other_kind(recipe: Recipe, name: str, config: Any) -> ValueError:
    return ValueError(
        f"model.{name}={recipe.model[name]!r} is a {config.model_type!r}, which is none: give {SUGGESTED[name]}"
    )
