"""From a recipe to a model that is ready to train: backbones, quantization, adapters, trainable groups, processor.

What is trained on the frozen language model is LoRA and its variants through PEFT, or task-routed adapters; PEFT
carries either, so that a checkpoint is a PEFT adapter with the new modules inside. Frozen backbones are stored in full
precision, int8 or NF4 (QLoRA). What learns is kept in float32: an optimizer's step is thousands of times smaller than
the weight it changes, and bfloat16 has three digits, so most steps would round to nothing.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, set_seed
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from ...modeling import PoiseConfig, PoiseForConditionalGeneration
from ...modeling.backbones import composite_config, placeholder_token
from ...processing import PoiseProcessor
from ..backbone_loading import (
    SUGGESTED,
    load_score_embedding,
    read_config,
    resolve_backbone,
)
from ..parameter_groups import NEW_MODULES, set_trainable
from .recipe import Recipe
from .ridge_initialization import align_words

logger = logging.getLogger(__name__)
_BACKBONES = ("vision", "text", "tag_encoder")


def lora_targets(model: PreTrainedModel) -> str:
    """The pattern of every linear layer inside the language model's blocks, and of nothing outside them."""
    head = model.get_output_embeddings()
    language_model = model.model.language_model
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in language_model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return lora_pattern(sorted(linear))


def lora_pattern(names: Sequence[str]) -> str:
    """A pattern for layers of these names in the language model: the vision tower has a `q_proj`, too."""
    return rf".*language_model\..*\.({'|'.join(map(re.escape, names))})"


def targets_of(model: PreTrainedModel, lora: Mapping[str, Any]) -> str:
    """What `lora.target_modules` means to PEFT: names are of the language model's layers, a text is a pattern."""
    targets = lora["target_modules"]
    if not targets:
        return lora_targets(model)
    return targets if isinstance(targets, str) else lora_pattern(targets)


def task_adapter_fields(lora: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of the configuration for `lora.task_routed`, or none of them."""
    if lora is None or not lora.get("task_routed"):
        return {}
    divisor = math.sqrt(lora["r"]) if lora["use_rslora"] else lora["r"]
    return {
        "task_adapter_rank": lora["r"],
        "task_adapter_scale": lora["alpha"] / divisor,
        "task_adapter_dropout": float(lora["dropout"]),
    }


def add_adapters(
    model: PreTrainedModel, lora: Mapping[str, Any], train_tag_encoder: bool, train_vision_tower: bool = False
) -> PeftModel:
    """
    Adapters on the language model; the new modules travel with them.

    PEFT keeps their untrained originals too, so that a disabled adapter is the untouched model (DPO's reference).

    Args:
        model: with task-routed adapters inside where `lora["task_routed"]`; then PEFT adds none of its own.
        lora (`Mapping`): the recipe's section.
        train_tag_encoder (`bool`): the tag encoder learns, too, and travels along.
        train_vision_tower (`bool`, *optional*, defaults to `False`): so does the vision tower.
    """
    new = (*NEW_MODULES, "task_adapters") if lora.get("task_routed") else NEW_MODULES
    modules = [f"model.{name}" for name in new if getattr(model.model, name, None) is not None]
    if train_tag_encoder:
        modules.append("model.tag_encoder")
    if train_vision_tower:
        modules.append("model.vision_tower")
    return get_peft_model(model, lora_config(model, lora, modules))


def lora_config(model: PreTrainedModel, lora: Mapping[str, Any], modules: Sequence[str]) -> LoraConfig:
    """PEFT's configuration of a recipe's section `lora`; `modules` learn in whole and travel along."""
    return LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=DUMMY_TARGET_MODULES if lora.get("task_routed") else targets_of(model, lora),
        modules_to_save=list(modules) or None,
        use_dora=lora.get("use_dora", False),
        use_rslora=lora.get("use_rslora", False),
    )


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """The bitsandbytes configuration of `model.quantization`, or `None`.

    Args:
        quantization (`str`): `"none"`, `"nf4"` (arXiv 2305.14314: 4-bit normal floats, their scales quantized again)
            or `"int8"`.
        dtype (`torch.dtype`): in which 4-bit weights are computed with, and stored as: equal to the model's, so that
            FSDP can shard both alike.

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


def keep_trained_in_float32(model: torch.nn.Module) -> None:
    """
    Widen every trainable parameter of half precision, in place, and the untrained originals that PEFT keeps of them.

    What is frozen stays as it is.
    """
    for name, parameter in model.named_parameters():
        learns = parameter.requires_grad or ".original_module." in name
        if learns and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def backbones_of(recipe: Recipe) -> dict[str, str | None]:
    """Backbones of a recipe, as transformers can load them."""
    names = {name: recipe.model[name] for name in _BACKBONES}
    return {name: None if given is None else resolve_backbone(given) for name, given in names.items()}


def fields_of(recipe: Recipe) -> dict[str, object]:
    """Fields of the configuration that a recipe names."""
    return {**task_adapter_fields(recipe.lora), **recipe.model.passed_on}


def assemble(recipe: Recipe) -> tuple[PreTrainedModel, PoiseProcessor]:
    """Backbones and processor of a recipe, without adapters. New modules are drawn from `training.seed`."""
    set_seed(recipe.seed)
    dtype = getattr(torch, recipe.model.dtype)
    backbones = backbones_of(recipe)
    model = PoiseForConditionalGeneration.from_backbones(
        **backbones,
        quantization_config=quantization_config(recipe.model.quantization, dtype),
        dtype=dtype,
        **fields_of(recipe),
    )
    load_score_embedding(getattr(model.model.soft_prompt, "score_embedding", None), backbones["tag_encoder"])
    # The names as the recipe gives them: a folder of this machine is no help to whoever loads the model elsewhere.
    model.config.backbones = {name: recipe.model[name] for name in _BACKBONES}
    processor = PoiseProcessor.from_backbones(**backbones, config=model.config, **recipe.processor)
    if recipe.model.align_words:
        explained = align_words(model, processor, recipe.seed)
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
    if recipe.data.packing is not None and text.is_encoder_decoder:
        raise ValueError(
            f"data.packing={recipe.data['packing']} needs a decoder-only language model, and model.text="
            f"{recipe.model['text']!r} is an encoder-decoder: leave packing out"
        )
    if recipe.lora is not None and recipe.lora.target_modules:
        check_targets(recipe.lora.target_modules, text)


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


def check_length(recipe: Recipe) -> None:
    """
    Raises:
        ValueError: `data.max_length` leaves no room beside one image's placeholders, which are never cut; or the
            configuration of the model contradicts its backbones.
    """
    config = composite_config(PoiseConfig, **backbones_of(recipe), **fields_of(recipe))
    max_length = recipe.data.max_length
    image = config.num_image_tokens + config.num_prompt_tokens
    if max_length is not None and max_length <= image:
        raise ValueError(
            f"data.max_length={max_length} leaves no room for text: one image takes {config.num_image_tokens} image "
            f"and {config.num_prompt_tokens} soft-prompt tokens, which are never cut; set it well above {image}"
        )


def processor_of(recipe: Recipe) -> PoiseProcessor:
    """The processor that `assemble` makes, from the backbones' configurations and tokenizers alone."""
    backbones = backbones_of(recipe)
    config = composite_config(PoiseConfig, **backbones, **fields_of(recipe))
    config.image_token_id, _ = placeholder_token(backbones["text"])
    return PoiseProcessor.from_backbones(**backbones, config=config, **recipe.processor)
