"""TRL's DPO trainer on a Poise model: router, soft prompt and tags take part, and the reference stays what it was.

TRL calls `base_model` in place of the model's outer `forward`, so what learns must act inside of what that returns; in
Poise it does. What TRL cannot know is done here: rates by parameter group, which parts behave as at inference, and
batches with the tags, which TRL's own collator loses when it renders chats to text before the processor sees them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.utils import ModulesToSaveWrapper
from trl import DPOConfig, DPOTrainer

from ...modeling.reliability_router import ReliabilityRouter
from ...processing import TrainingCollator
from ...processing.batching.collators import IGNORED
from ..first_step_checks import GradientCheck
from ..parameter_groups import NEW_MODULES, set_trainable
from ..run_files import PREFERENCE_RECIPE_FILE, write_run_files
from ..sft.assembly import keep_trained_in_float32, lora_config
from ..stage_trainer import StageTraining
from .recipe import PreferenceRecipe


class PreferenceCollator:
    """
    Rows exactly as fine-tuning and evaluation make them, once with the chosen and once with the rejected answers.

    Args:
        processor ([`PoiseProcessor`]): made for a decoder-only model.
        max_length (`int`, *optional*): longest row; text is cut, placeholders never.

    Returns `input_ids`, `attention_mask`, `completion_mask` (2B, T), B chosen rows and then B rejected ones, with the
    images and tags of 2B rows. An example may be a pair, or hold one under `"pair"`.
    """

    def __init__(self, processor: Any, max_length: int | None = None):
        self.rows = TrainingCollator(processor, max_length=max_length)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        pairs = [example.get("pair", example) for example in examples]
        records = [answered(pair, pair[choice]) for choice in ("chosen", "rejected") for pair in pairs]
        batch = dict(self.rows(records))
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()  # (2B, T)
        return batch


def answered(pair: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """The pair as a task record with one answer."""
    return {**pair, "captions" if pair["task"] == "caption" else "answers": [answer]}


class PreferenceTrainer(StageTraining, DPOTrainer):
    """
    Args:
        model ([`PoiseForConditionalGeneration`]): decoder-only, without adapters; the reference is this model with the
            new adapter switched off.
        args (`DPOConfig`): as `preference_arguments` makes it.
        processor ([`PoiseProcessor`]): made for the model.
        recipe ([`PreferenceRecipe`]): its `lora`, `learning_rates` and `dpo.drop_streams`; written beside checkpoints.
        pairs (`Sequence`): preference pairs.
        score (`Callable`, *optional*): `(model) -> dict[str, float]`, called by `evaluate`.
    """

    evaluates_loss = False

    def __init__(
        self,
        model: Any,
        args: DPOConfig,
        processor: Any,
        recipe: PreferenceRecipe,
        pairs: Any,
        score: Any = None,
        callbacks: Sequence[Any] = (),
    ):
        self.recipe, self.learning_rates, self.score = recipe, recipe.learning_rates, score
        self.training_data = pairs
        collator = PreferenceCollator(processor, recipe.data.max_length)
        rows = as_dataset(pairs)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            # The Trainer asks for an evaluation set before it evaluates; what is asked is `score`'s affair.
            eval_dataset=None if score is None else rows,
            data_collator=collator,
            processing_class=processor,
            peft_config=adapter_config(model, recipe.lora, recipe.learning_rates),
            callbacks=list(callbacks),
        )
        set_trainable(self.model, recipe.learning_rates)
        keep_trained_in_float32(self.model)
        self.add_callback(GradientCheck())

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        behave_as_at_inference(model, routers=not self.recipe.dpo.drop_streams)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None here: `poise publish` writes the card, from what was measured."""

    def write_beside(self, folder: Path) -> None:
        write_run_files(folder, self.accelerator.unwrap_model(self.model), None)
        self.recipe.save(folder / PREFERENCE_RECIPE_FILE)


def behave_as_at_inference(model: torch.nn.Module, routers: bool) -> None:
    """
    Evaluation mode, inside a model that trains, for the reference's modules and, if wanted, for reliability routers.

    A reference that drops streams at random would be another model at every step. A router that drops them would ask
    the policy to prefer the image's answer where it was not shown the image, and one that went on observing would
    learn from invented tags what sound tags look like.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.original_module.eval()
        elif routers and isinstance(module, ReliabilityRouter):
            module.eval()


def adapter_config(model: Any, lora: Mapping[str, Any], learning_rates: Mapping[str, Any]) -> LoraConfig:
    """LoRA on the language model, and copies of the new modules that learn beside originals that stay."""
    modules = []
    if {"new_modules", "soft_prompt"} & set(learning_rates):
        modules = [f"model.{name}" for name in NEW_MODULES if getattr(model.model, name, None) is not None]
    if "new_modules" not in learning_rates:
        modules = [name for name in modules if name == "model.soft_prompt"]
    if "tag_encoder" in learning_rates:
        modules.append("model.tag_encoder")
    return lora_config(model, lora, modules)


def as_dataset(pairs: Any) -> Dataset:
    """Pairs behind a `datasets.Dataset`, the only thing TRL takes; images are opened when a row is read."""

    def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [pairs[index] for index in batch["index"]]
        # TRL asks the first row for "images" to know that there are images; the collator reads "pair".
        return {"pair": rows, "images": [[] if row["image"] is None else [row["image"]] for row in rows]}

    return Dataset.from_dict({"index": list(range(len(pairs)))}).with_transform(read)
