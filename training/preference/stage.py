"""`poise preference`: prefer what the image shows to what the prior or an invented tag says (DPO, through TRL)."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...evaluation.data_sources import load_data_source
from ...evaluation.saved_models import saved_config
from ...processing.scenes.scenes import Scenes
from ..parameter_groups import highest_rate
from ..run_files import PREFERENCE_RECIPE_FILE, RECIPE_FILE, same_recipe_checkpoint
from ..run_start import made_arguments, opened_run
from ..sft.checkpoints import export_model, load_trained
from ..sft.recipe import load_recipe
from .pairs import PreferenceRecords, ScenePairs
from .prior_following import PriorFollowing
from .recipe import SCENES, PreferenceRecipe

logger = logging.getLogger(__name__)


def run_preference(
    recipe: PreferenceRecipe,
    resume: str | None = None,
    callbacks: Sequence[Any] = (),
    overwrite: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """
    Train as the recipe says and write the finished model below the run's folder.

    Args:
        recipe ([`PreferenceRecipe`]): checked already.
        resume, overwrite: see [`opened_run`].
        callbacks (`Sequence[TrainerCallback]`, *optional*): join the trainer's.

    Returns:
        The folder of the model, and `steps`, `train_loss`, and `before` and `after`: the scores on `data.evaluation`.

    Raises:
        ValueError: an encoder-decoder or a quantized model, bad pairs, or a checkpoint that does not fit.
        ImportError: TRL is not installed.
    """
    folder = check_model(str(recipe.model.folder))
    args = preference_arguments(recipe)
    with opened_run(args, lambda path: check_resumable(path, recipe), resume, overwrite) as run:
        pairs = load_pairs(recipe)
        questions = None
        if recipe.data.evaluation is not None:
            questions = load_data_source(recipe.data.evaluation, recipe.data.evaluation_samples)
        from .trainer import PreferenceTrainer

        loaded, processor = load_trained(folder)
        model = loaded.merge_and_unload() if hasattr(loaded, "merge_and_unload") else loaded
        logger.info("%d preference pairs", len(pairs))
        trainer = PreferenceTrainer(
            model, args, processor, recipe, pairs, _scorer(questions, processor, recipe), callbacks=callbacks
        )
        metrics = run.train_and_score(trainer, trainer.accelerator.unwrap_model(trainer.model).disable_adapter())
        output = Path(args.output_dir) / "model"
        if trainer.is_world_process_zero():

            def write_recipes(written: Path) -> None:
                recipe.save(written / PREFERENCE_RECIPE_FILE)
                if (folder / RECIPE_FILE).is_file():
                    shutil.copy(folder / RECIPE_FILE, written / RECIPE_FILE)

            export_model(trainer.accelerator.unwrap_model(trainer.model), processor, output, None, write_recipes)
        return output, metrics


def check_model(name: str) -> Path:
    """
    The folder of a model that TRL's DPO can train, told from its configuration before any weight is read.

    Raises:
        ValueError: no Poise model, an encoder-decoder, or one whose language model is quantized.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model.folder={name!r} holds no config.json: name the finished model of a fine-tuning run")
    config = saved_config(folder)
    if config.get("model_type") != "poise":
        raise ValueError(f"model.folder={name!r} holds a {config.get('model_type')!r} model, not a 'poise' one")
    if (config.get("text_config") or {}).get("is_encoder_decoder") or config.get("is_encoder_decoder"):
        raise ValueError(
            f"model.folder={name!r} has an encoder-decoder language model, which TRL's DPO cannot train: it scores an "
            "answer in the row of its prompt; start from a decoder-only language model, or stay with poise sft"
        )
    recipe = folder / RECIPE_FILE
    quantization = load_recipe(os.fspath(recipe)).model["quantization"] if recipe.is_file() else "none"
    if config.get("quantization_config") or quantization != "none":
        raise ValueError(f"model.folder={name!r} is quantized: merge it into full precision first, with poise merge")
    return folder


def preference_arguments(recipe: PreferenceRecipe) -> Any:
    """TRL's `DPOConfig` of a recipe; the learning rate of the arguments is only the loggers' headline.

    Raises:
        ImportError: TRL is not installed.
    """
    if importlib.util.find_spec("trl") is None:
        raise ImportError("poise preference needs TRL: pip install 'poise[preference]'")
    from trl import DPOConfig

    settings = dict(recipe.training)
    settings.setdefault("learning_rate", highest_rate(recipe.learning_rates))
    return made_arguments(
        DPOConfig,
        settings,
        beta=recipe.dpo.beta,
        loss_type=recipe.dpo.loss_type,
        loss_weights=recipe.dpo.loss_weights,
        label_smoothing=recipe.dpo.label_smoothing,
        disable_dropout=not recipe.dpo.drop_streams,
        max_length=None,  # the collator cuts, and knows what must not be cut
    )


def load_pairs(recipe: PreferenceRecipe) -> Any:
    """The pairs that a recipe names. Raises as [`ScenePairs`] and [`PreferenceRecords`]."""
    if recipe.data.train != SCENES:
        return PreferenceRecords(recipe.data.train, recipe.data.image_folder)
    settings = {"split": "train", "tasks": ("vqa",), "question_types": ("color", "shape"), **recipe.data.scenes}
    return ScenePairs(Scenes(**{"seed": recipe.seed, **settings}), recipe.data.kinds, recipe.seed)


def _scorer(questions: Any, processor: Any, recipe: PreferenceRecipe) -> Any:
    if questions is None:
        return None
    evaluator = PriorFollowing(max_new_tokens=recipe.data.max_new_tokens, batch_size=64, progress=False)
    return lambda model: evaluator(model, processor, questions)


def check_resumable(checkpoint: str | os.PathLike, recipe: PreferenceRecipe) -> Path:
    """The checkpoint folder, if a run with this recipe can go on from it; a `ValueError` if not."""
    return same_recipe_checkpoint(
        checkpoint, "poise preference", recipe, ("model", "lora", "dpo"), PREFERENCE_RECIPE_FILE
    )


def summary(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Lines that tell how a run ended."""
    for moment in ("before", "after"):
        if moment in metrics:
            shown = ("vqa_accuracy", "prior_following", "other_wrong")
            scores = {name: metrics[moment].get(f"eval_{name}") for name in shown}
            yield f"{moment}: " + ", ".join(f"{n} {v:.3f}" for n, v in scores.items() if v is not None)
