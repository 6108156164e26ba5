"""`PoiseTrainer`: transformers' Trainer with the groups, checks and generated answers that a VLM needs.

What it adds: a learning rate per parameter group; the first batch described in plain words; a check after the first
step that every module which should learn got a gradient; evaluation that generates and scores answers; checkpoints that
carry adapter, new modules, configuration, processor and recipe together.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from poise.processing import PoiseProcessor, TrainingCollator, describe_batch
from poise.training.checkpoints import write_run_files
from poise.training.parameter_groups import NEW_MODULES, group_of, optimizer_groups
from poise.training.recipe import Recipe

logger = logging.getLogger(__name__)


class PoiseTrainer(Trainer):
    """
    Args:
        model: as `prepare_for_training` returns it, with or without PEFT.
        args (`TrainingArguments`): `remove_unused_columns` must be off, records are no model inputs.
        processor ([`PoiseProcessor`]): made for the model; saved into every checkpoint.
        learning_rates (`Mapping[str, float]`): a rate per group of `parameter_groups`.
        score_answers (`Callable`, *optional*): `(model) -> dict[str, float]`; called in every evaluation, its metrics
            join `eval_loss` and can choose the best checkpoint.
        recipe ([`Recipe`], *optional*): written beside every checkpoint.
        max_length (`int`, *optional*): longest row in tokens.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args,
        processor: PoiseProcessor,
        learning_rates: Mapping[str, float],
        train_dataset=None,
        eval_dataset=None,
        score_answers: Callable[[torch.nn.Module], dict[str, float]] | None = None,
        recipe: Recipe | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ):
        self.processor, self.learning_rates = processor, dict(learning_rates)
        self.score_answers, self.recipe = score_answers, recipe
        self.first_batch_described = False
        args.remove_unused_columns = False
        # Answers are generated; the logits of a whole evaluation would only fill the memory.
        args.prediction_loss_only = True
        args.label_names = args.label_names or ["labels"]
        super().__init__(
            model=model,
            args=args,
            data_collator=TrainingCollator(
                processor,
                max_length=max_length,
                is_encoder_decoder=model.config.is_encoder_decoder,
                seed=args.seed,
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            **kwargs,
        )
        self.add_callback(GradientCheck())

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = optimizer_groups(model or self.model, self.learning_rates, self.args.weight_decay)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            settings.pop("lr", None)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.first_batch_described:
            self.first_batch_described = True
            if self.is_world_process_zero():
                logger.info("first batch: %s", describe_batch(inputs, self.processor))
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.score_answers is not None:
            scored = {f"{metric_key_prefix}_{k}": v for k, v in self.score_answers(self.model).items()}
            self.log(scored)
            metrics.update(scored)
        return metrics

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else self.args.output_dir)
            write_run_files(folder, self.accelerator.unwrap_model(self.model), self.recipe)


class GradientCheck(TrainerCallback):
    """After the first backward pass: every module that should learn must have got a gradient."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step > 0 or model is None:
            return
        without, silent = modules_without_gradient(model)
        if without:
            raise ValueError(
                f"{', '.join(without)} should learn but got no gradient in the first step: the loss does not depend on "
                "it. Check that the records bring the inputs it reads (images, tags), or drop its learning rate."
            )
        if silent:
            logger.warning(
                "%s got a gradient of exactly zero in the first step; if that lasts, nothing is learned there.",
                ", ".join(silent),
            )


def modules_without_gradient(model: torch.nn.Module) -> tuple[list[str], list[str]]:
    """Trainable modules none of whose parameters has a gradient, and those whose gradients are all exactly zero."""
    gradients: dict[str, list[float | None]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            new_module = next((module for module in NEW_MODULES if module in name.split(".")), None)
            key = new_module if group_of(name) == "new_modules" and new_module else str(group_of(name))
            gradient = parameter.grad
            gradients.setdefault(key, []).append(None if gradient is None else float(gradient.abs().max()))
    without = [name for name, values in gradients.items() if all(value is None for value in values)]
    silent = [name for name, values in gradients.items() if name not in without and not any(values)]
    return without, silent
