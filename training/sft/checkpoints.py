"""Checkpoints: what lies beside the weights, which folders can be resumed, and how a trained folder is loaded again.

A run's folder holds `checkpoint-*` (adapter and new modules, optimizer, random states) and, at its end, `model`: the
finished model with merged adapters, processor and remote code, which plain transformers loads.

Merging adapters into 4-bit weights would round the sum to 4 bits again. So the base is widened first: to what its 4-bit
weights stand for (the weights that the adapters were trained on, so the merged model is the trained one), or to the
backbone's own full precision (closer to the backbone, a little off what was trained).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import PreTrainedModel

from ...evaluation.saved_models import load_whole, loading_errors
from ...modeling import PoiseConfig, PoiseForConditionalGeneration
from ...modeling.task_routed_adapters import hook_adapters
from ...processing import PoiseProcessor
from ..atomic_folders import finished_folder
from ..recipe_loading import without_slash
from ..run_files import (
    RECIPE_FILE,
    base_of,
    check_sound,
    last_checkpoint,
    resumable_checkpoint,
    warn_of_other_versions,
    write_run_files,
)
from .assembly import assemble
from .recipe import Recipe, load_recipe


def check_resumable(checkpoint: str | os.PathLike, recipe: Recipe) -> Path:
    """
    The checkpoint folder, if a run with this recipe can go on from it.

    Raises:
        ValueError: it is no checkpoint, a torn one, holds no optimizer state, or belongs to another architecture.
    """
    folder = resumable_checkpoint(checkpoint, "poise sft")
    _check_same_architecture(folder, recipe)
    return folder


def _check_same_architecture(folder: Path, recipe: Recipe) -> None:
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if saved.get("model_type") != PoiseConfig.model_type:
        raise ValueError(
            f"resume={str(folder)!r} holds a {saved.get('model_type', 'nameless')!r} model, not a 'poise' one: "
            "resume only from checkpoints that poise sft wrote"
        )
    wanted = {k: v for k, v in recipe.model.items() if k in saved and k not in ("dtype",)}
    wanted.update({f"backbones.{name}": recipe.model[name] for name in ("vision", "text", "tag_encoder")})
    found = {**saved, **{f"backbones.{name}": value for name, value in (saved.get("backbones") or {}).items()}}
    if (folder / RECIPE_FILE).is_file():
        # Adapters of another shape, or other groups in the optimizer, would not fit what was saved.
        trained = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
        found["learning_rates"] = sorted(trained["learning_rates"])
        wanted["learning_rates"] = sorted(recipe.learning_rates)
        kinds = {**(trained["lora"] or {}), "lora": bool(trained["lora"])}
        found.update({f"lora.{key}": value for key, value in kinds.items()})
        kinds = {**(recipe.lora or {}), "lora": bool(recipe.lora)}
        wanted.update({f"lora.{key}": value for key, value in kinds.items()})
    for key, value in wanted.items():
        if key in found and without_slash(found[key]) != value:
            raise ValueError(
                f"resume={str(folder)!r} was trained with {key}={found[key]!r}, the recipe says {value!r}: use the "
                f"recipe.yaml beside the checkpoint, or start without --resume"
            )


def export_model(
    model: torch.nn.Module,
    processor: PoiseProcessor,
    folder: Path,
    recipe: Recipe | None,
    write_more: Callable[[Path], None] = lambda written: None,
    advice: str | None = None,
) -> Path:
    """
    Write the finished model: adapters merged into the language model, processor, remote code.

    A quantized language model keeps its adapter apart, because merging into 4-bit weights loses accuracy; the folder
    then is a PEFT adapter with the new modules inside. `write_more` adds files before the folder appears; `advice` says
    how to go on where the disk is full, as in `finished_folder`.
    """
    base = base_of(model)
    with finished_folder(folder, advice) as written:
        if isinstance(model, PeftModel) and getattr(base, "is_quantized", False):
            model.save_pretrained(written)
        else:
            merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
            merged.eval().save_pretrained(written)
        processor.save_pretrained(written)
        write_run_files(written, base, recipe)
        write_more(written)
    return folder


def load_trained(folder: str | os.PathLike, **kwargs: Any) -> tuple[torch.nn.Module, PoiseProcessor]:
    """
    Model in evaluation mode and processor from a finished `model` folder or from a `checkpoint-N`.

    Raises:
        ValueError: the folder holds neither a Poise model nor an adapter with its recipe, or its weights are damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"model={str(folder)!r} is no folder: give a finished model or a checkpoint-N folder")
    check_sound(folder)
    warn_of_other_versions(folder)
    if (folder / "adapter_config.json").is_file():
        if not (folder / RECIPE_FILE).is_file():
            raise ValueError(f"model={str(folder)!r} is an adapter without {RECIPE_FILE}: its base cannot be built")
        base, _ = assemble(load_recipe(os.fspath(folder / RECIPE_FILE)))
        with loading_errors(folder):
            model: torch.nn.Module = PeftModel.from_pretrained(base, os.fspath(folder), **kwargs)
    elif (folder / "config.json").is_file():
        model = load_whole(PoiseForConditionalGeneration, folder, **kwargs)
    else:
        raise ValueError(f"model={str(folder)!r} holds no config.json: give a finished model or a checkpoint-N folder")
    with loading_errors(folder):
        return model.eval(), PoiseProcessor.from_pretrained(folder)


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
        ValueError: an unknown base, damaged weights, or a folder without a trained model or the recipe of its base.
    """
    if base not in BASES:
        raise ValueError(f"base={base!r} is not known: choose one of {', '.join(BASES)}")
    folder = trained_folder(run)
    if not (folder / ADAPTER_FILE).is_file():
        loaded: Any = load_trained(folder)
        return loaded
    check_sound(folder)
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"RUN {str(folder)!r} is an adapter without {RECIPE_FILE}: its base cannot be built")
    overrides = {"model.quantization": "none"} if base == "full" else {}
    whole, _ = assemble(load_recipe(os.fspath(folder / RECIPE_FILE), overrides))
    with loading_errors(folder):
        with_adapters = PeftModel.from_pretrained(dequantize(whole), os.fspath(folder))
    with torch.no_grad():
        merged = with_adapters.merge_and_unload()
    return merged.eval(), PoiseProcessor.from_pretrained(folder)
