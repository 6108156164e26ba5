"""`PoiseTrainer`: transformers' Trainer with the groups, checks and generated answers that a VLM needs.

Beside what all stages have ([`StageTraining`]): the first batch described in plain words; a check after the first step
that every module which should learn got a gradient; logits only where an answer is supervised; evaluation that
generates and scores answers; another caption of every image in every epoch; and in [`DataFlow`] lengths for grouping,
packed rows, endless streams that resume, padding that counts.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from ...processing import PoiseProcessor, describe_batch
from ...processing.batching.collators import IGNORED
from ...processing.batching.packing import PackingCollator, padding_places
from ...processing.records.endless_records import EndlessRecords
from ..feature_cache.cached_records import CachedRecords, CachedTrainingCollator
from ..first_step_checks import GradientCheck
from ..run_files import base_of, write_run_files
from ..stage_trainer import StageTraining
from .packing import check_packing, row_lengths
from .recipe import Recipe

logger = logging.getLogger(__name__)


class DataFlow:
    """
    How records flow into training; comes before a `Trainer` among the bases of a class.

    Attributes:
        packing (`int`, *optional*): tokens of a packed row; `None` pads every sample to the longest of its batch.
        padding ([`PaddingShare`]): of the training batches since the last log.
    """

    args: Any
    accelerator: Any
    train_dataset: Any
    data_collator: Any
    model: Any

    packing: int | None = None

    def prepare_data_flow(self, args: Any, train_dataset: Any, packing: int | None) -> None:
        """Called before `Trainer.__init__`."""
        self.packing, self.padding = packing, PaddingShare()
        if isinstance(train_dataset, IterableDataset):
            # Every process reads the stream and keeps its share: rows of other processes may have other lengths.
            args.accelerator_config.dispatch_batches = False
            if args.max_steps <= 0:
                raise ValueError("a stream has no end: set training.max_steps")

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or isinstance(dataset, IterableDataset):
            return super()._get_train_sampler(train_dataset)
        lengths = row_lengths(dataset, self.data_collator)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(batch, dataset, lengths=lengths)

    def get_train_dataloader(self):
        if isinstance(self.train_dataset, EndlessRecords):
            self.train_dataset.group = self.args.train_batch_size * self.args.world_size
        if self.packing is None:
            return super().get_train_dataloader()
        check_packing(base_of(self.accelerator.unwrap_model(self.model)))
        # Evaluation is not packed: its loss is a mean over batches, which packing would weigh anew.
        padding, self.data_collator = self.data_collator, PackingCollator(self.data_collator, self.packing)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = padding

    def _init_training_state(self, *args, **kwargs):
        epochs, batches = super()._init_training_state(*args, **kwargs)
        if isinstance(self.train_dataset, EndlessRecords):
            self.train_dataset.passed_over = batches * self.train_dataset.group
        return epochs, batches

    def training_step(self, model, inputs, *args, **kwargs):
        self.padding.add(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            share = self.padding.take(self.accelerator)
            if share is not None:
                logs = {**logs, "padding": share}
        super().log(logs, *args, **kwargs)


class PaddingShare:
    """Share of the tokens of training batches that are padding, over all processes."""

    def __init__(self):
        self.counts: torch.Tensor | None = None  # (2,): padding, all

    def add(self, batch) -> None:
        padding = padding_places(batch)  # (B, T)
        counts = torch.stack([padding.sum(), torch.as_tensor(padding.numel(), device=padding.device)])  # (2,)
        self.counts = counts if self.counts is None else self.counts + counts

    def take(self, accelerator: Any = None) -> float | None:
        """The share since the last call, or `None` if nothing was added."""
        if self.counts is None:
            return None
        counts = self.counts if accelerator is None else accelerator.reduce(self.counts, "sum")
        self.counts = None
        return round(float(counts[0] / counts[1]), 4)


def supervised_only(inputs: dict[str, Any]) -> dict[str, Any]:
    """
    The inputs of a decoder-only model with `logits_to_keep` [B, T] bool, true where the next token is supervised, and
    `shift_labels` [n], those tokens; its `logits` then are [n, V]. A batch without any stays as it is.

    Most places of a row are image, prompt or padding. The head multiplies them by the whole vocabulary, forwards and
    backwards, for a loss that does not look at them: without them loss and gradients are the same.
    """
    following = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)  # (B, T)
    supervised = following != IGNORED  # (B, T)
    if not bool(supervised.any()):
        return inputs
    return {**inputs, "logits_to_keep": supervised, "shift_labels": following[supervised]}  # (B, T), (n,)


def takes_a_mask(model: torch.nn.Module) -> bool:
    """
    Whether the model's language model can leave out logits by a mask: it is decoder-only, and cuts by transformers' own
    function. Heads that were replaced, or that come with a repository, may know numbers only.
    """
    base = base_of(model)
    if base.config.is_encoder_decoder:
        return False
    forward = inspect.unwrap(base.model.language_model.forward)
    return "slice_logits_to_keep" in getattr(getattr(forward, "__code__", None), "co_names", ())


class PoiseTrainer(DataFlow, StageTraining, Trainer):
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
        self.score, self.recipe = score_answers, recipe
        # The same records, whether their features are kept or not.
        self.training_data = train_dataset.records if isinstance(train_dataset, CachedRecords) else train_dataset
        self.first_batch_described = False
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

    def scored_model(self) -> torch.nn.Module:
        return self.model  # a sharded model generates in its wrapper

    def write_beside(self, folder: Path) -> None:
        write_run_files(folder, self.accelerator.unwrap_model(self.model), self.recipe)


class CaptionOfTheEpoch(TrainerCallback):
    """Tells the collator which epoch it is, so that every epoch draws other captions; a resumed one draws the same."""

    def __init__(self, collator: Any):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.collator, "epoch"):
            self.collator.epoch = int(state.epoch or 0)
