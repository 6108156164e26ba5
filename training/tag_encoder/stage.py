"""`poise tag-encoder`: teach a sentence encoder what tags with scores mean, by a triplet margin loss to captions.

It leaves a folder that any recipe can name as `tag_encoder`.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainerCallback, set_seed

from ..atomic_folders import finished_folder
from ..backbone_loading import SCORE_EMBEDDING_FILE, load_tag_encoder
from ..run_files import RECIPE_FILE, same_recipe_checkpoint, write_versions
from ..run_start import opened_run
from .data import TaggedCaptions, TripletCollator, load_tagged_captions, positive_captions, split_held_out
from .model import TagEmbedder
from .recipe import TagEncoderRecipe, training_arguments
from .scores import embed_captions, tag_encoder_scores
from .trainer import TagEncoderTrainer

RESULTS_FILE = "tag_encoder_results.json"


def save_tag_encoder(
    embedder: TagEmbedder, tokenizer: Any, folder: Path, results: Mapping[str, Any], recipe: TagEncoderRecipe
) -> None:
    """Encoder, tokenizer, the score embedding where there is one, recipe, versions and results, in one folder."""
    with finished_folder(folder) as written:
        embedder.encoder.save_pretrained(written)
        tokenizer.save_pretrained(written)
        if embedder.score_embedding is not None:
            state = embedder.score_embedding.state_dict()
            save_file(
                {name: value.detach().contiguous() for name, value in state.items()}, written / SCORE_EMBEDDING_FILE
            )
        recipe.save(written / RECIPE_FILE)
        write_versions(written)
        (written / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


logger = logging.getLogger(__name__)


def load_images(recipe: TagEncoderRecipe) -> tuple[list[TaggedCaptions], list[TaggedCaptions]]:
    """Training images and held-out ones of a recipe."""
    data = recipe.data
    options: dict[str, Any] = {
        "vocabulary": data.vocabulary, "invented": data.invented, "scenes": data.scenes,
    }  # fmt: skip
    train = load_tagged_captions(data.train, recipe.seed, **options)
    if data.evaluation is None:
        return split_held_out(train, data.held_out, recipe.seed)
    held_out = load_tagged_captions(data.evaluation, recipe.seed, split="validation", **options)
    if len(held_out) < 2:
        raise ValueError(f"data.evaluation={data['evaluation']!r} holds {len(held_out)} image: give two or more")
    return train, held_out


def run_tag_encoder(
    recipe: TagEncoderRecipe,
    resume: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    overwrite: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """
    Train as the recipe says and write `tag_encoder` below the run's folder.

    Args:
        recipe ([`TagEncoderRecipe`]): checked already.
        resume, overwrite: see [`opened_run`].
        callbacks (`Sequence[TrainerCallback]`, *optional*): join the trainer's.

    Returns:
        The folder of the tag encoder, and its results: `train` and `held_out` (numbers of images) and `curve`, the
        scores of every evaluation with their `step` and `epoch`, the first before any training.

    Raises:
        ValueError: bad records, or a checkpoint that does not fit.
    """
    args = training_arguments(recipe)
    with opened_run(args, lambda path: check_resumable(path, recipe), resume, overwrite) as run:
        train, held_out = load_images(recipe)
        set_seed(args.seed)
        encoder, tokenizer = load_tag_encoder(str(recipe.model.tag_encoder))
        embedder = TagEmbedder(
            encoder.train(),
            recipe.model.score_encoding,
            margin=recipe.triplet.margin,
            p=recipe.triplet.p,
            negatives=recipe.triplet.negatives,
        )
        collator = TripletCollator(tokenizer, with_scores=recipe.model.score_encoding == "text")
        targets = choose_positives(recipe, embedder, collator, [*train, *held_out])
        for_training = [
            TaggedCaptions(image.name, image.tags, texts) for image, texts in zip(train, targets, strict=False)
        ]
        positives = targets[len(train) :]
        logger.info("%d images to learn from, %d held out", len(train), len(held_out))
        trainer = TagEncoderTrainer(
            embedder,
            args,
            recipe.learning_rates,
            for_training,
            score=lambda model: tag_encoder_scores(model, collator, held_out, positives),
            recipe=recipe,
            data_collator=collator,
            callbacks=list(callbacks),
        )
        run.train(trainer)
        results = {"train": len(train), "held_out": len(held_out), "curve": curve(trainer.state.log_history)}
        folder = Path(args.output_dir) / "tag_encoder"
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            save_tag_encoder(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder, results, recipe)
        return folder, results


def choose_positives(
    recipe: TagEncoderRecipe, embedder: TagEmbedder, collator: TripletCollator, images: Sequence[TaggedCaptions]
) -> list[list[str]]:
    """Per image the captions of its positive, chosen by a sentence encoder that does not learn."""
    judge, reader = embedder, collator
    if recipe.model.sentence_encoder is not None and recipe.triplet.positive == "centroid":
        encoder, tokenizer = load_tag_encoder(recipe.model.sentence_encoder)
        judge, reader = TagEmbedder(encoder, "text"), TripletCollator(tokenizer, with_scores=True)
    judge.eval()
    try:
        return positive_captions(
            [image.captions for image in images],
            recipe.triplet.positive,
            lambda texts: embed_captions(judge, reader, texts),
        )
    finally:
        embedder.train()


def curve(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The evaluations by step, without the prefix `eval_`; a resumed run repeats the one that it starts with."""
    found = {
        entry["step"]: {name.removeprefix("eval_"): value for name, value in entry.items()}
        for entry in log_history
        if "eval_anchor_positive_cosine" in entry
    }
    return list(found.values())


def check_resumable(checkpoint: str | os.PathLike, recipe: TagEncoderRecipe) -> Path:
    """The checkpoint folder, if a run with this recipe can go on from it; a `ValueError` if not."""
    return same_recipe_checkpoint(checkpoint, "poise tag-encoder", recipe, ("model", "triplet"))


def summary(results: Mapping[str, Any]) -> Iterator[str]:
    """Lines that tell how a run ended."""
    for moment, scores in (("before", results["curve"][:1]), ("after", results["curve"][-1:])):
        for entry in scores:
            shown = ", ".join(f"{name} {value:.3f}" for name, value in entry.items() if name not in ("step", "epoch"))
            yield f"{moment}: {shown}"
