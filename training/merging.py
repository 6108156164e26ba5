"""Adapters merged into the language model: a run becomes one plain model.

Merging into 4-bit weights would round the sum to 4 bits again. So the base is widened first: to what its 4-bit weights
stand for (the weights that the adapters were trained on, so the merged model is the trained one), or to the backbone's
own full precision (closer to the backbone, a little off what was trained).
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from poise.modeling import PoiseForConditionalGeneration
from poise.modeling.task_routed_adapters import hook_adapters
from poise.processing import PoiseProcessor
from poise.training.assembly import assemble
from poise.training.checkpoints import RECIPE_FILE, last_checkpoint
from poise.training.recipe import load_recipe

BASES = ("dequantized", "full")
ADAPTER_FILE = "adapter_config.json"


def is_run(folder: str | os.PathLike) -> bool:
    """Whether a folder is what `poise sft` writes, adapters over a base that its recipe names, or a run around them."""
    folder = Path(folder)
    if (folder / ADAPTER_FILE).is_file():
        return (folder / RECIPE_FILE).is_file()
    return folder.is_dir() and not (folder / "config.json").is_file() and _trained(folder) is not None


def trained_folder(run: str | os.PathLike) -> Path:
    """
    Where the trained weights of a run lie: its finished model, else its best checkpoint, else its newest one.

    A model's or a checkpoint's own folder is itself.

    Raises:
        ValueError: there is none of these.
    """
    folder = Path(run)
    found = _trained(folder)
    if found is None:
        raise ValueError(
            f"RUN {str(run)!r} holds neither a finished model nor a checkpoint: name a folder that poise sft wrote"
        )
    return found


def _trained(folder: Path) -> Path | None:
    for candidate in (folder, folder / "model"):
        if (candidate / ADAPTER_FILE).is_file() or (candidate / "config.json").is_file():
            return candidate
    newest = last_checkpoint(folder)
    if newest is None:
        return None
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    best = folder / Path(state.get("best_model_checkpoint") or newest).name
    return best if best.is_dir() else newest


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with full weights in place of quantized ones; one that has none is returned as it is."""
    if not getattr(model, "is_quantized", False):
        return model
    model.dequantize()
    for holder in (model.config, model.config.text_config):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    for owner in (model, model.model.language_model):
        for flag in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
            if getattr(owner, flag, False):
                setattr(owner, flag, False)
        if getattr(owner, "hf_quantizer", None) is not None:
            owner.hf_quantizer = None
    hook_adapters(model.base_model)  # the layers are new ones
    return model


def merged_model(run: str | os.PathLike, base: str = "dequantized") -> tuple[PreTrainedModel, PoiseProcessor]:
    """
    The trained model of a run without adapters, in evaluation mode, and its processor.

    Task-routed adapters stay what they are, a part of the model: no single weight is right for all tasks.

    Args:
        run: a run's folder, a checkpoint's, or a finished model's.
        base (`str`, *optional*, defaults to `"dequantized"`):
            `"dequantized"`: what the quantized weights stand for; `"full"`: the backbone's own weights. The same where
            nothing was quantized.

    Raises:
        ValueError: an unknown base, or a folder without a trained model or the recipe of its base.
    """
    if base not in BASES:
        raise ValueError(f"base={base!r} is not known: choose one of {', '.join(BASES)}")
    folder = trained_folder(run)
    if not (folder / ADAPTER_FILE).is_file():
        model: Any = PoiseForConditionalGeneration.from_pretrained(folder)
        return model.eval(), PoiseProcessor.from_pretrained(folder)
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"RUN {str(folder)!r} is an adapter without {RECIPE_FILE}: its base cannot be built")
    overrides = {"model.quantization": "none"} if base == "full" else {}
    whole, _ = assemble(load_recipe(os.fspath(folder / RECIPE_FILE), overrides))
    with_adapters = PeftModel.from_pretrained(dequantize(whole), os.fspath(folder))
    with torch.no_grad():
        merged = with_adapters.merge_and_unload()
    return merged.eval(), PoiseProcessor.from_pretrained(folder)
