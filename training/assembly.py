"""From a recipe to a model that is ready to train: backbones, quantization, adapters, trainable groups, processor."""

import logging
import re
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from poise.modeling import PoiseForConditionalGeneration
from poise.processing import PoiseProcessor
from poise.training.parameter_groups import NEW_MODULES, set_trainable
from poise.training.recipe import Recipe
from poise.training.tiny_backbones import tiny_backbone_path
from poise.training.word_alignment import align_words

logger = logging.getLogger(__name__)

TINY = "tiny:"
_BACKBONES = ("vision", "text", "tag_encoder")
_NOT_CONFIG = ("dtype", "quantization", "align_words")


def resolve_backbone(name: str | None) -> str | None:
    """`tiny:vision` → the folder of the shipped backbone; every other name (Hub id, folder) as it is."""
    if name is None or not name.startswith(TINY):
        return name
    return str(tiny_backbone_path(name.removeprefix(TINY)))


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """The bitsandbytes configuration of `model.quantization`, or `None`.

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    if quantization == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"model.quantization={quantization!r} needs bitsandbytes: pip install 'poise[quantization]', or "
            "set model.quantization=none"
        ) from error
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def lora_targets(model: PreTrainedModel) -> str:
    """A pattern for every linear layer inside the language model's blocks, and for nothing outside them."""
    head = model.get_output_embeddings()
    language_model = model.model.language_model
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in language_model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return rf".*language_model\..*\.({'|'.join(sorted(map(re.escape, linear)))})"


def add_adapters(model: PreTrainedModel, lora: dict[str, Any], train_tag_encoder: bool) -> PeftModel:
    """
    LoRA on the language model; the new modules travel with the adapter.

    PEFT keeps their untrained originals too, so that a disabled adapter is the untouched model (DPO's reference).
    """
    modules = [f"model.{name}" for name in NEW_MODULES if getattr(model.model, name, None) is not None]
    if train_tag_encoder:
        modules.append("model.tag_encoder")
    config = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"] or lora_targets(model),
        modules_to_save=modules,
        use_dora=lora["use_dora"],
        use_rslora=lora["use_rslora"],
    )
    return get_peft_model(model, config)


def assemble(recipe: Recipe) -> tuple[PreTrainedModel, PoiseProcessor]:
    """Backbones and processor of a recipe, without adapters. New modules are drawn from `training.seed`."""
    set_seed(recipe.training.get("seed", 42))
    dtype = getattr(torch, recipe.model["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"model.dtype={recipe.model['dtype']!r} is not a torch dtype: write float32 or bfloat16")
    fields = {k: v for k, v in recipe.model.items() if k not in (*_BACKBONES, *_NOT_CONFIG)}
    backbones = {name: resolve_backbone(recipe.model.get(name)) for name in _BACKBONES}
    model = PoiseForConditionalGeneration.from_backbones(
        **backbones,
        quantization_config=quantization_config(recipe.model["quantization"], dtype),
        dtype=dtype,
        **fields,
    )
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
    if recipe.model["quantization"] != "none" and recipe.lora is None:
        raise ValueError("lora is null, but a quantized language model cannot be saved retrained: give lora a rank")
    trained: PreTrainedModel | PeftModel = model
    if recipe.lora is not None:
        trained = add_adapters(model, recipe.lora, "tag_encoder" in groups)
    set_trainable(trained, groups)
    return trained
