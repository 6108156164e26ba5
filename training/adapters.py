"""What is trained on a frozen language model: LoRA and its variants through PEFT, or task-routed adapters.

Either way PEFT carries it: a checkpoint is a PEFT adapter with the new modules inside.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import PreTrainedModel

from poise.training.parameter_groups import NEW_MODULES


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


def task_adapter_fields(lora: dict[str, Any] | None) -> dict[str, Any]:
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
    model: PreTrainedModel, lora: dict[str, Any], train_tag_encoder: bool, train_vision_tower: bool = False
) -> PeftModel:
    """
    Adapters on the language model; the new modules travel with them.

    PEFT keeps their untrained originals too, so that a disabled adapter is the untouched model (DPO's reference).

    Args:
        model: with task-routed adapters inside where `lora["task_routed"]`; then PEFT adds none of its own.
        lora (`dict`): the recipe's section.
        train_tag_encoder (`bool`): the tag encoder learns, too, and travels along.
        train_vision_tower (`bool`, *optional*, defaults to `False`): so does the vision tower.
    """
    new = (*NEW_MODULES, "task_adapters") if lora.get("task_routed") else NEW_MODULES
    modules = [f"model.{name}" for name in new if getattr(model.model, name, None) is not None]
    if train_tag_encoder:
        modules.append("model.tag_encoder")
    if train_vision_tower:
        modules.append("model.vision_tower")
    targets = DUMMY_TARGET_MODULES if lora.get("task_routed") else targets_of(model, lora)
    config = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=targets,
        modules_to_save=modules,
        use_dora=lora["use_dora"],
        use_rslora=lora["use_rslora"],
    )
    return get_peft_model(model, config)
