"""`PoiseTrainer`: transformers' Trainer with the groups, checks and generated answers that a VLM needs.

What it adds: learning rate, decay and schedule per parameter group; the first batch described in plain words; a check
after the first step that every module which should learn got a gradient; logits only where an answer is supervised;
evaluation that generates and scores answers; another caption of every picture in every epoch; checkpoints that carry
adapter, new modules, configuration, processor and recipe together.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from poise.processing import PoiseProcessor, describe_batch
from poise.training.cached_records import CachedTrainingCollator
from poise.training.checkpoints import write_run_files
from poise.training.data_flow import DataFlow
from poise.training.gradient_check import GradientCheck
from poise.training.group_schedules import own_schedules, scheduler_by_group
from poise.training.parameter_groups import optimizer_groups
from poise.training.recipe import Recipe
from poise.training.safe_training import SafeTraining
from poise.training.supervised_logits import supervised_only, takes_a_mask

logger = logging.getLogger(__name__)


class PoiseTrainer(DataFlow, SafeTraining, Trainer):
    """
    Args:
        model: as `prepare_for_training` returns it, with or without PEFT.
        args (`TrainingArguments`): `remove_unused_columns` must be off, records are no model inputs.
        processor ([`PoiseProcessor`]): made for the model; saved into every checkpoint.
        learning_rates (`Mapping`): by group of `parameter_groups` a rate, or `{rate, weight_decay, schedule, warmup}`.
        score_answers (`Callable`, *optional*): `(model) -> dict[str, float]`; called in every evaluation, its metrics
            join `eval_loss`, choose the best checkpoint and stop early.
        recipe ([`Recipe`], *optional*): written beside every checkpoint.
        max_length (`int`, *optional*): longest row in tokens.
        allow_without_gradient (`Sequence[str]`, *optional*): modules that may miss a gradient in the first step.
        packing (`int`, *optional*): pack short samples into rows of so many tokens, see [`DataFlow`].
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args,
        processor: PoiseProcessor,
        learning_rates: Mapping[str, Any],
        train_dataset=None,
        eval_dataset=None,
        score_answers: Callable[[torch.nn.Module], dict[str, float]] | None = None,
        recipe: Recipe | None = None,
        max_length: int | None = None,
        allow_without_gradient: Sequence[str] = (),
        packing: int | None = None,
        **kwargs: Any,
    ):
        self.processor, self.learning_rates = processor, dict(learning_rates)
        self.score_answers, self.recipe = score_answers, recipe
        self.first_batch_described = False
        self.group_rates: dict[str, float] = {}
        args.remove_unused_columns = False
        self.prepare_data_flow(args, train_dataset, packing)
        # Answers are generated; the logits of a whole evaluation would only fill the memory.
        args.prediction_loss_only = True
        args.label_names = args.label_names or ["labels"]
        super().__init__(
            model=model,
            args=args,
            data_collator=CachedTrainingCollator(
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
        self.add_callback(GradientCheck(allow_without_gradient))
        self.add_callback(CaptionOfTheEpoch(self.data_collator))

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = optimizer_groups(model or self.model, self.learning_rates, self.args.weight_decay)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            settings.pop("lr", None)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None and own_schedules(self.learning_rates):
            self.lr_scheduler = scheduler_by_group(
                optimizer or self.optimizer, self.learning_rates, self.args, num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.first_batch_described:
            self.first_batch_described = True
            if self.is_world_process_zero():
                logger.info("first batch: %s", describe_batch(inputs, self.processor))
        return super().training_step(model, inputs, num_items_in_batch)

    @cached_property
    def leaves_out_logits(self) -> bool:
        """Whether training computes logits of supervised positions only."""
        # A compiled model would be compiled anew for every number of them; the others want all logits, or split the
        # batch by rows.
        args = self.args
        wants_all = self.label_smoother is not None or self.compute_loss_func is not None
        return not (args.torch_compile or args.n_gpu > 1 or wants_all) and takes_a_mask(
            self.accelerator.unwrap_model(self.model)
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Whoever splits sequences over devices has shifted the labels already.
        if model.training and "labels" in inputs and "shift_labels" not in inputs and self.leaves_out_logits:
            inputs = supervised_only(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        # Inside the loop, not after `evaluate`: so early stopping and trackers see one set of metrics.
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.score_answers is not None:
            scored = self.score_answers(self.model)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scored.items()})
        return output

    def _get_learning_rate(self):
        # Called before the scheduler moves on: these are the rates of the step that is going to be logged.
        self.group_rates = {group["group"]: group["lr"] for group in self.optimizer.param_groups if "group" in group}
        return super()._get_learning_rate()

    def log(self, logs, start_time=None):
        if "learning_rate" in logs:
            logs = {**logs, **{f"learning_rate/{name}": float(rate) for name, rate in self.group_rates.items()}}
        super().log(logs, start_time)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else self.args.output_dir)
            write_run_files(folder, self.accelerator.unwrap_model(self.model), self.recipe)


class CaptionOfTheEpoch(TrainerCallback):
    """Tells the collator which epoch it is, so that every epoch draws other captions; a resumed one draws the same."""

    def __init__(self, collator: Any):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.collator, "epoch"):
            self.collator.epoch = int(state.epoch or 0)
