"""`poise sft`: fine-tune projector, soft prompt, router and LoRA adapters on task records."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

from ...evaluation.generation_evaluator import GenerationEvaluator
from ...evaluation.intervals import is_bound
from ...evaluation.robustness.degraded_records import CLEAN
from ...evaluation.robustness.router_weights import RouterByCondition, has_router
from ..feature_cache.frozen_towers import cached_records
from ..first_step_checks import module_table
from ..parameter_groups import count_parameters, highest_rate
from ..run_start import made_arguments, opened_run
from .assembly import assemble, check_backbones, check_length, prepare_for_training
from .checkpoints import check_resumable, export_model
from .recipe import Recipe
from .records import load_records
from .ridge_initialization import align_pictures, feature_batches
from .trainer import PoiseTrainer

logger = logging.getLogger(__name__)

CONDITIONS, SEVERITY = ("blank", "noise", "tags_removed", "tags_shuffled"), 4  # under which the router is watched


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """`TrainingArguments` of a recipe, checked; the learning rate of the arguments is only the loggers' headline."""
    settings = dict(recipe.training)
    settings.setdefault("learning_rate", highest_rate(recipe.learning_rates))
    if recipe.early_stopping.patience is not None:
        settings.setdefault("load_best_model_at_end", True)
    return made_arguments(TrainingArguments, settings)


def run_sft(
    recipe: Recipe,
    resume: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    overwrite: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """
    Train as the recipe says and write the finished model.

    Args:
        recipe ([`Recipe`]): checked already.
        resume, overwrite: see [`opened_run`].
        callbacks (`Sequence[TrainerCallback]`, *optional*): join the trainer's.

    Returns:
        The folder of the finished model, and the last evaluation's metrics with `train_loss`, `steps`, `seconds` and
        the trained `parameters` by group.

    Raises:
        ValueError: bad records, a checkpoint that does not fit, or an output folder that is a file.
    """
    args = training_arguments(recipe)
    with opened_run(args, lambda path: check_resumable(path, recipe), resume, overwrite) as run:
        train, evaluation = load_records(recipe)
        if evaluation is None and args.eval_strategy != "no":
            raise ValueError(
                f"training.eval_strategy={args.eval_strategy.value!r} has nothing to evaluate on: name "
                "data.evaluation, or set it to 'no'"
            )
        check_backbones(recipe)
        check_length(recipe)
        model, processor = assemble(recipe)
        if recipe.model.align_pictures:
            explained = align_pictures(
                model, processor, feature_batches(model, processor, train, recipe.model.align_pictures)
            )
            logger.info("projector aligned to the words of tags: %.0f %% of their variance", 100 * explained)
        trained = prepare_for_training(model, recipe)
        parameters = count_parameters(trained)
        if args.process_index == 0:
            logger.info("%s", module_table(trained, recipe.learning_rates))
        if recipe.data.feature_cache:
            train = cached_records(train, trained, processor, args, recipe.data)
        trainer = PoiseTrainer(
            trained,
            args,
            processor,
            recipe.learning_rates,
            train_dataset=train,
            eval_dataset=evaluation,
            score_answers=_answer_scorer(evaluation, processor, recipe),
            recipe=recipe,
            max_length=recipe.data.max_length,
            allow_without_gradient=recipe.checks.allow_without_gradient,
            packing=recipe.data.packing,
            callbacks=[*callbacks, *_early_stopping(recipe)],
        )
        if callbacks and args.disable_tqdm:
            trainer.remove_callback(PrinterCallback)  # the bar is off because somebody else shows how it goes
        result = run.train(trainer)
        metrics = {"train_loss": result.training_loss, "steps": result.global_step,
                   "seconds": result.metrics.get("train_runtime"), "parameters": parameters}  # fmt: skip
        if evaluation is not None and args.eval_strategy != "no":
            metrics.update(trainer.evaluate())
        trainer.accelerator.wait_for_everyone()
        folder = Path(args.output_dir) / "model"
        if trainer.is_world_process_zero():
            export_model(trainer.accelerator.unwrap_model(trainer.model), processor, folder, recipe)
        return folder, metrics


def _early_stopping(recipe: Recipe) -> list[TrainerCallback]:
    patience, threshold = recipe.early_stopping.patience, recipe.early_stopping.threshold
    return [] if patience is None else [EarlyStoppingCallback(patience, threshold)]


def _answer_scorer(evaluation, processor, recipe: Recipe):
    if evaluation is None:
        return None
    evaluator = GenerationEvaluator(max_new_tokens=recipe.data.max_new_tokens)
    if recipe.model.router_type == "none":
        return lambda model: evaluator(model, processor, evaluation)
    curves = router_curves(processor, evaluation)
    return lambda model: {**evaluator(model, processor, evaluation), **curves(model)}


def summary(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Lines that tell how a run ended."""
    for name, value in metrics.items():
        if isinstance(value, int | float) and not is_bound(name, metrics):
            yield f"{name}: {value:.4g}"


def router_curves(processor: Any, records: Sequence[Any], samples: int = 32) -> Callable[[Any], dict[str, float]]:
    """
    `(model) -> {"router/blank/image": 0.02, "router/blank/text": 0.98, ...}`: what the router does while it is trained,
    as mean weights by condition over the first `samples` records with an image; empty for a model without a router.
    """
    evaluator = RouterByCondition(degradations=CONDITIONS, severity=SEVERITY, batch_size=32, progress=False)
    each = (records[place] for place in range(len(records)))
    shown = list(islice((record for record in each if isinstance(record["image"], Image.Image)), samples))

    def curves(model: Any) -> dict[str, float]:
        weights = evaluator(model, processor, shown) if shown and has_router(model) else {}
        names = {f"{condition}_{stream}_weight": f"router/{condition}/{stream}"
                 for condition in (CLEAN, *CONDITIONS) for stream in ("image", "text")}  # fmt: skip
        return {shown: weights[name] for name, shown in names.items() if name in weights}

    return curves
