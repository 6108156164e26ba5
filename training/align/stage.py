"""`poise align`: train the projectors of a dual encoder on frozen features, calibrate it as a tagger, measure it."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    TrainerCallback,
    VisionTextDualEncoderProcessor,
    set_seed,
)
from transformers import logging as transformers_logging

from ...evaluation.whole_files import write_whole
from ...modeling import PoiseDualEncoder
from ...processing.taggers import DualEncoderTagger
from ..atomic_folders import finished_folder
from ..backbone_loading import read_config, resolve_backbone
from ..run_files import RECIPE_FILE, same_recipe_checkpoint, write_versions
from ..run_start import opened_run
from .caption_pairs import CaptionPairs, load_pairs
from .pair_features import pair_features
from .recipe import AlignRecipe, load_vocabulary, training_arguments
from .report import calibrate, measure, quick_retrieval
from .trainer import AlignTrainer

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
RELIABILITY_PLOT = "reliability.png"


def load_alignment_data(recipe: AlignRecipe) -> tuple[CaptionPairs, CaptionPairs | None]:
    """
    Pairs to learn from, and pairs to calibrate and measure on (or `None`).

    Raises:
        ValueError: a source is not there or holds no images with captions.
    """
    data = recipe.data
    scenes = dict(data.scenes)
    train = load_pairs(data.train, "train", scenes, data.image_folder, recipe.seed)
    if data.evaluation is None:
        return train, None
    held_out = {**scenes, "size": data.evaluation_size}
    return train, load_pairs(data.evaluation, "validation", held_out, data.image_folder, recipe.seed)


def build_dual_encoder(recipe: AlignRecipe) -> tuple[PoiseDualEncoder, VisionTextDualEncoderProcessor]:
    """Frozen encoders with a new head drawn from `training.seed`, and their processor."""
    set_seed(recipe.seed)
    names = {part: recipe.model[part] for part in ("vision", "text")}
    folders = {part: resolve_backbone(name) for part, name in names.items()}
    model = PoiseDualEncoder.from_backbones(
        folders["vision"], folders["text"], dtype=getattr(torch, recipe.model.dtype), **recipe.head_fields
    )
    model.head.float()  # what is trained is trained in full precision
    model.config.backbones = names  # as the recipe gives them: a folder of this machine is no help elsewhere
    tokenizer = AutoTokenizer.from_pretrained(folders["text"])
    if "attention_mask" not in tokenizer.model_input_names:  # SigLIP's; padding would be averaged like words
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
    image_processor = AutoImageProcessor.from_pretrained(folders["vision"])
    return model, VisionTextDualEncoderProcessor(image_processor, tokenizer)


def run_align(
    recipe: AlignRecipe,
    resume: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    overwrite: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """
    Train as the recipe says; write the dual encoder with its processor, and the tagger where there is a vocabulary.

    Args:
        recipe ([`AlignRecipe`]): checked already.
        resume, overwrite: see [`opened_run`].
        callbacks (`Sequence[TrainerCallback]`, *optional*): join the trainer's.

    Returns:
        The folder of the finished model, and what was measured, as it stands in `metrics.json`.

    Raises:
        ValueError: bad data, or a checkpoint that does not fit.
    """
    transformers_logging.disable_progress_bar()  # of loading and saving a few megabytes
    args = training_arguments(recipe)
    with opened_run(args, lambda path: check_resumable(path, recipe), resume, overwrite) as run:
        train, held_out = load_alignment_data(recipe)
        _check_vocabulary(recipe, train)
        for part in ("vision", "text"):
            read_config(f"model.{part}", str(resolve_backbone(recipe.model[part])))
        model, processor = build_dual_encoder(recipe)
        model.to(args.device)
        storage = {
            "folder": recipe.data.feature_cache,
            "dtype": getattr(torch, recipe.data.feature_dtype),
            "batch_size": recipe.data.feature_batch_size,
        }
        learned = pair_features(model, processor, train, parts=recipe.data.caption_parts, **storage)
        watched = None if held_out is None else pair_features(model, processor, held_out, **storage)
        logger.info("%s images with %s texts to learn from", f"{len(train):,}", f"{len(learned):,}")
        trainer = AlignTrainer(
            model.head,
            args,
            recipe,
            learned,
            watched,
            score=None if watched is None else lambda head: quick_retrieval(head, watched),
            callbacks=list(callbacks),
        )
        result = run.train(trainer)
        trainer.accelerator.wait_for_everyone()
        folder = Path(args.output_dir) / "model"
        metrics: dict[str, Any] = {
            "train_loss": result.training_loss,
            "steps": result.global_step,
            "seconds": result.metrics.get("train_runtime"),
            "parameters": sum(parameter.numel() for parameter in model.head.parameters()),
            "inverse_temperature": model.head.inverse_temperature().item(),
        }
        if trainer.is_world_process_zero():
            model.eval()
            metrics.update(finish(model, processor, recipe, held_out, folder))
        return folder, metrics


def _check_vocabulary(recipe: AlignRecipe, train: CaptionPairs) -> None:
    """The words of drawn scenes stay in a recipe when only its data are replaced: no such tag would ever be right."""
    known = set().union(*train.names_present())
    if recipe.tagger.vocabulary == "scenes" and known and not known & set(load_vocabulary("scenes")):
        raise ValueError(
            f"tagger.vocabulary='scenes' holds none of the {len(known)} tags of data.train={recipe.data['train']!r} "
            f"(such as {min(known)!r}): give a file with their names, or none (--tagger.vocabulary null)"
        )


def finish(
    model: PoiseDualEncoder, processor: Any, recipe: AlignRecipe, held_out: CaptionPairs | None, folder: Path
) -> dict[str, Any]:
    """Write the model with tagger, recipe and versions; calibrate and measure it where there is held-out data."""
    vocabulary = load_vocabulary(recipe.tagger.vocabulary)
    metrics: dict[str, Any] = {}
    tagger = None
    if vocabulary:
        settings = {name: recipe.tagger[name] for name in ("templates", "threshold", "max_tags")}
        tagger = DualEncoderTagger(model, processor, vocabulary, **settings)
    if held_out is not None:
        halves = [range(0, len(held_out), 2), range(1, len(held_out), 2)]
        if tagger is not None:
            try:
                metrics["calibration"] = calibrate(tagger, held_out, halves[0])
            except ValueError as error:  # too short a run, or tags in other words: no reason to lose what was trained
                logger.warning("the tagger stays uncalibrated: %s", error)
        metrics.update(measure(model, processor, tagger, held_out, halves[1], folder.parent / RELIABILITY_PLOT))
    write_whole(folder.parent / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    with finished_folder(folder) as written:
        if tagger is None:
            model.save_pretrained(written)
            processor.save_pretrained(written)
        else:
            tagger.save_pretrained(written)
        recipe.save(written / RECIPE_FILE)
        write_versions(written)
    return metrics


def check_resumable(checkpoint: str | os.PathLike, recipe: AlignRecipe) -> Path:
    """The checkpoint folder, if a run with this recipe can go on from it; a `ValueError` if not."""
    return same_recipe_checkpoint(checkpoint, "poise align", recipe, ("model", "regularization"))


def summary(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Lines that tell how a run ended."""
    for section, values in metrics.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            if isinstance(value, int | float):
                yield f"{section} {name}".strip() + f": {value:.4g}"
