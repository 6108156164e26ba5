"""`AlignTrainer`: transformers' Trainer over cached features, for the head of a dual encoder alone.

Every process compares its pairs with those of all processes, so that a batch spread over several gives the loss and
gradients of the same batch in one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributed.nn.functional import all_gather
from transformers import Trainer

from ...modeling.contrastive_losses import CONTRASTIVE_LOSSES
from ...modeling.dual_encoder_head import DualEncoderHead, weighted_mean
from ..feature_cache.cache import Features
from ..stage_trainer import StageTraining
from .pair_features import PairFeatures
from .recipe import AlignRecipe
from .regularizers import fuse_mix, structure_regularizer


def batch_as_it_is(batch: Features) -> Features:
    """The collator: `PairFeatures` hands out whole batches."""
    return batch


def gathered(vectors: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, (B, D) → (W·B, D), with gradients back to where they came from."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return vectors
    return torch.cat(all_gather(vectors.contiguous()))  # (W·B, D)


class AlignTrainer(StageTraining, Trainer):
    """
    Args:
        head ([`DualEncoderHead`]): what is trained; the frozen encoders need not be in memory.
        args (`TrainingArguments`): `gradient_accumulation_steps` must be 1.
        recipe ([`AlignRecipe`]): its regularization, and written beside every checkpoint.
        train_dataset, eval_dataset ([`PairFeatures`]).
        score (`Callable`, *optional*): `(head) -> dict[str, float]`, called in every evaluation.
    """

    def __init__(
        self,
        head: DualEncoderHead,
        args,
        recipe: AlignRecipe,
        train_dataset: PairFeatures,
        eval_dataset: PairFeatures | None = None,
        score: Callable[[DualEncoderHead], Mapping[str, float]] | None = None,
        **kwargs: Any,
    ):
        self.recipe, self.score = recipe, score
        super().__init__(
            model=head,
            args=args,
            data_collator=batch_as_it_is,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        settings, training = self.recipe.regularization, model.training
        rows = {name: self.accelerator.gather(inputs[name]) for name in ("image_rows", "text_rows")}  # (W·B,) each
        inputs = {name: values for name, values in inputs.items() if name not in rows}
        matches = (self.train_dataset if training else self.eval_dataset).matches(**rows)  # (W·B, W·B)
        if training and settings["fusemix_alpha"] is not None:
            inputs, partner = fuse_mix(inputs, settings["fusemix_alpha"])
            partner = self.accelerator.gather(partner + len(partner) * self.accelerator.process_index)  # (W·B,)
            matches = matches & matches[partner][:, partner]  # a mixed text is true where both of its halves are
        image_embeds, text_embeds, scale, bias = model(**inputs)  # (B, D) twice
        logits = scale * gathered(image_embeds) @ gathered(text_embeds).T + bias  # (W·B, W·B)
        loss = CONTRASTIVE_LOSSES[self.accelerator.unwrap_model(model).loss_type](logits, matches)
        if training and settings["structure_weight"]:
            weight = settings["structure_weight"] * warmed_up(
                self.state.global_step, settings["structure_warmup_steps"]
            )
            loss = loss + weight * structure_loss(inputs, image_embeds, text_embeds, settings)
        return (loss, {"logits": logits}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


def warmed_up(step: int, warmup_steps: int) -> float:
    """Share of a weight that grows evenly from nothing to all of it over `warmup_steps`; all of it at once for 0."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def structure_loss(
    features: Features, image_embeds: torch.Tensor, text_embeds: torch.Tensor, settings: Mapping[str, Any]
) -> torch.Tensor:
    """STRUCTURE of both modalities, averaged: frozen features as their paths pool them against the shared space."""
    images = features["vision_cls"] if "vision_cls" in features else features["vision_tokens"].mean(1)  # (B, Dv)
    texts = weighted_mean(features["text_tokens"], features["text_mask"])  # (B, Dt)
    levels, temperature = settings["structure_levels"], settings["structure_temperature"]
    return (
        structure_regularizer(images, image_embeds, levels, temperature)
        + structure_regularizer(texts, text_embeds, levels, temperature)
    ) / 2
