"""Checkpoints: what lies beside the weights, which folders can be resumed, and how a trained folder is loaded again.

A run's folder holds `checkpoint-*` (adapter and new modules, optimizer, random states) and, at its end, `model`: the
finished model with merged adapters, processor and remote code, which plain transformers loads.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import PreTrainedModel

from poise.modeling import PoiseConfig, PoiseForConditionalGeneration
from poise.processing import PoiseProcessor
from poise.training.recipe import Recipe
from poise.training.safe_training import complete_checkpoints, resumable_checkpoint
from poise.training.versions import VERSIONS_FILE, versions, warn_of_other_versions, write_versions
from poise.training.written_aside import finished_folder

RECIPE_FILE = "recipe.yaml"

__all__ = [
    "RECIPE_FILE",
    "VERSIONS_FILE",
    "base_of",
    "check_resumable",
    "export_model",
    "last_checkpoint",
    "load_trained",
    "versions",
    "write_run_files",
]


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The Poise model, inside PEFT or not."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def write_run_files(folder: Path, model: torch.nn.Module, recipe: Recipe | None) -> None:
    """Configuration, versions and recipe beside saved weights (PEFT saves none of them)."""
    base_of(model).config.save_pretrained(folder)
    write_versions(folder)
    if recipe is not None:
        recipe.save(folder / RECIPE_FILE)


def last_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The newest `checkpoint-N` of a run that is complete, or `None`."""
    saved = complete_checkpoints(output_dir)
    return saved[-1] if saved else None


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
    wanted.update({f"backbones.{name}": recipe.model.get(name) for name in ("vision", "text", "tag_encoder")})
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
        if key in found and found[key] != value:
            raise ValueError(
                f"resume={str(folder)!r} was trained with {key}={found[key]!r}, the recipe says {value!r}: use the "
                f"recipe.yaml beside the checkpoint, or start without --resume"
            )


def export_model(model: torch.nn.Module, processor: PoiseProcessor, folder: Path, recipe: Recipe | None) -> Path:
    """
    Write the finished model: adapters merged into the language model, processor, remote code.

    A quantized language model keeps its adapter apart, because merging into 4-bit weights loses accuracy; the folder
    then is a PEFT adapter with the new modules inside.
    """
    base = base_of(model)
    with finished_folder(folder) as written:
        if isinstance(model, PeftModel) and getattr(base, "is_quantized", False):
            model.save_pretrained(written)
        else:
            merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
            merged.eval().save_pretrained(written)
        processor.save_pretrained(written)
        write_run_files(written, base, recipe)
    return folder


def load_trained(folder: str | os.PathLike, **kwargs: Any) -> tuple[torch.nn.Module, PoiseProcessor]:
    """
    Model in evaluation mode and processor from a finished `model` folder or from a `checkpoint-N`.

    Raises:
        ValueError: the folder holds neither a Poise model nor an adapter with its recipe.
    """
    from poise.training.assembly import assemble
    from poise.training.recipe import load_recipe

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"model={str(folder)!r} is no folder: give a finished model or a checkpoint-N folder")
    warn_of_other_versions(folder)
    if (folder / "adapter_config.json").is_file():
        if not (folder / RECIPE_FILE).is_file():
            raise ValueError(f"model={str(folder)!r} is an adapter without {RECIPE_FILE}: its base cannot be built")
        base, _ = assemble(load_recipe(os.fspath(folder / RECIPE_FILE)))
        model: torch.nn.Module = PeftModel.from_pretrained(base, os.fspath(folder), **kwargs)
    elif (folder / "config.json").is_file():
        model = PoiseForConditionalGeneration.from_pretrained(folder, **kwargs)
    else:
        raise ValueError(f"model={str(folder)!r} holds no config.json: give a finished model or a checkpoint-N folder")
    return model.eval(), PoiseProcessor.from_pretrained(folder)
