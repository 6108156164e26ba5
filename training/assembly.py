"""From a recipe to a model that is ready to train: backbones, quantization, adapters, trainable groups, processor."""

import logging

import torch
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from poise.modeling import PoiseForConditionalGeneration
from poise.processing import PoiseProcessor
from poise.training.adapters import add_adapters, task_adapter_fields
from poise.training.parameter_groups import set_trainable
from poise.training.quantization import quantization_config
from poise.training.recipe import Recipe
from poise.training.tag_encoder_folder import PACKAGE, load_score_embedding, resolve_tag_encoder
from poise.training.tiny_backbones import tiny_backbone_path
from poise.training.trained_precision import keep_trained_in_float32
from poise.training.word_alignment import align_words

logger = logging.getLogger(__name__)

TINY = "tiny:"
_BACKBONES = ("vision", "text", "tag_encoder")
_NOT_CONFIG = ("dtype", "quantization", "align_words", "align_pictures")


def resolve_backbone(name: str | None) -> str | None:
    """`tiny:vision` → the shipped folder, `package:minilm` → the one in that package; every other name as it is."""
    if name is not None and name.startswith(PACKAGE):
        return resolve_tag_encoder(name)
    if name is None or not name.startswith(TINY):
        return name
    return str(tiny_backbone_path(name.removeprefix(TINY)))


def backbones_of(recipe: Recipe) -> dict[str, str | None]:
    """Backbones of a recipe, as transformers can load them."""
    return {name: resolve_backbone(recipe.model.get(name)) for name in _BACKBONES}


def fields_of(recipe: Recipe) -> dict[str, object]:
    """Fields of the configuration that a recipe names."""
    written = {k: v for k, v in recipe.model.items() if k not in (*_BACKBONES, *_NOT_CONFIG)}
    return {**task_adapter_fields(recipe.lora), **written}


def assemble(recipe: Recipe) -> tuple[PreTrainedModel, PoiseProcessor]:
    """Backbones and processor of a recipe, without adapters. New modules are drawn from `training.seed`."""
    set_seed(recipe.training.get("seed", 42))
    dtype = getattr(torch, recipe.model["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"model.dtype={recipe.model['dtype']!r} is not a torch dtype: write float32 or bfloat16")
    backbones = backbones_of(recipe)
    model = PoiseForConditionalGeneration.from_backbones(
        **backbones,
        quantization_config=quantization_config(recipe.model["quantization"], dtype),
        dtype=dtype,
        **fields_of(recipe),
    )
    load_score_embedding(getattr(model.model.soft_prompt, "score_embedding", None), backbones["tag_encoder"])
    # The names as the recipe gives them: a folder of this machine is no help to whoever loads the model elsewhere.
    model.config.backbones = {name: recipe.model.get(name) for name in _BACKBONES}
    processor = PoiseProcessor.from_backbones(**backbones, config=model.config, **recipe.processor)
    if recipe.model["align_words"]:
        explained = align_words(model, processor, recipe.training.get("seed", 42))
        logger.info("soft prompt aligned to the language model's words: %.0f %% of their variance", 100 * explained)
    return model, processor


def prepare_for_training(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel | PeftModel:
    """Adapters where the recipe names them, and gradients for exactly the groups that have a learning rate."""
    groups = recipe.learning_rates
    trained: PreTrainedModel | PeftModel = model
    if recipe.lora is not None:
        trained = add_adapters(model, recipe.lora, "tag_encoder" in groups, "vision_tower" in groups)
    set_trainable(trained, groups)
    keep_trained_in_float32(trained)
    return trained
