"""How records flow into training: lengths for grouping, packed rows, endless streams that resume, padding that counts.

[`DataFlow`] comes before a `Trainer` among the bases of a class.
"""

import logging
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from poise.processing.endless_records import EndlessRecords
from poise.processing.packing import PackingCollator, padding_places
from poise.training.checkpoints import base_of
from poise.training.packing_check import check_packing
from poise.training.row_lengths import row_lengths

logger = logging.getLogger(__name__)


class DataFlow:
    """
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
