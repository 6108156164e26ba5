"""`poise sft --config vlm_router`: train a router, a soft prompt and LoRA on a pretrained VLM that stays frozen."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as IMAGE_TEXT_TO_TEXT
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, set_seed

from ...evaluation.data_sources import load_data_source
from ...evaluation.generation_evaluator import GenerationEvaluator
from ...evaluation.intervals import is_bound
from ...evaluation.probing.parts import model_parts
from ...modeling.modeling_vlm_router import RoutedVlm
from ...processing.batching.collators import IGNORED
from ..atomic_folders import finished_folder
from ..backbone_loading import SUGGESTED, read_config, read_tokenizer, resolve_backbone
from ..run_files import same_recipe_checkpoint
from ..run_start import made_arguments, opened_run
from ..stage_trainer import StageTraining
from .answer_collator import AnswerCollator, answer_logits
from .decision_costs import DecisionCosts
from .recipe import VlmRouterRecipe

logger = logging.getLogger(__name__)


def run_vlm_router(
    recipe: VlmRouterRecipe, resume: str | None = None, callbacks: Sequence[Any] = (), overwrite: bool = False
) -> tuple[Path, dict[str, Any]]:
    """
    Train as the recipe says and write the finished model below the run's folder.

    Args:
        recipe ([`VlmRouterRecipe`]): checked already.
        resume, overwrite: see [`opened_run`].
        callbacks (`Sequence[TrainerCallback]`, *optional*): join the trainer's.

    Returns:
        The folder of the model, which [`RoutedVlm`] and the Auto classes load, and `steps`, `train_loss`, and `before`
        and `after`: the scores on `data.evaluation`.

    Raises:
        ValueError: a family in which no router can stand, bad data, or a checkpoint that does not fit.
    """
    args = made_arguments(TrainingArguments, recipe.training)
    with opened_run(args, lambda path: check_resumable(path, recipe), resume, overwrite) as run:
        data = recipe.data
        records = load_data_source(data.train)
        questions = None
        if data.evaluation is not None:
            questions = load_data_source(data.evaluation, data.evaluation_samples)
        set_seed(recipe.seed)
        model, processor = new_model(recipe)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        logger.info("%d records; %s stays frozen, %.2f million parameters are new", len(records), recipe.model.vlm,
                    trained / 1e6)  # fmt: skip
        trainer = VlmRouterTrainer(
            model=model,
            args=args,
            data_collator=AnswerCollator(model_parts(model), processor, seed=recipe.seed),
            train_dataset=records,
            callbacks=list(callbacks),
            recipe=recipe,
            score=_scorer(questions, processor, recipe),
        )
        costs = DecisionCosts(trainer.data_collator, records)
        if recipe.model.router_type == "reliability":
            trainer.add_callback(costs)
        metrics = {**run.train_and_score(trainer), "decision_costs": costs.found}
        output = Path(args.output_dir) / "model"
        if trainer.is_world_process_zero():
            with finished_folder(output) as written:
                trainer.accelerator.unwrap_model(trainer.model).eval().save_pretrained(written)
                trainer.write_beside(written)
        return output, metrics


def new_model(recipe: VlmRouterRecipe) -> tuple[RoutedVlm, Any]:
    """
    A [`RoutedVlm`] with untrained parts, and the processor of the VLM.

    Raises:
        ValueError: a family in which no router can stand, or LoRA for modules that it does not have.
    """
    settings = dict(recipe.model)
    remote, dtype = {"trust_remote_code": settings.pop("trust_remote_code")}, settings.pop("dtype")
    name, encoder = (resolve_backbone(settings.pop(part)) for part in ("vlm", "tag_encoder"))
    if not remote["trust_remote_code"] and type(config := read_config("model.vlm", name)) not in IMAGE_TEXT_TO_TEXT:
        raise ValueError(
            f"model.vlm={name!r} is a {config.model_type!r} model, which answers no questions about images: give "
            f"{SUGGESTED['vlm']}"
        )
    read_config("model.tag_encoder", encoder)
    read_tokenizer("model.tag_encoder", encoder)
    processor = AutoProcessor.from_pretrained(name, **remote)
    vlm = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **remote)
    tag_encoder = AutoModel.from_pretrained(encoder, dtype=torch.float32)
    lora = None if recipe.lora.r is None else {k: v for k, v in recipe.lora.items() if v is not None}
    model = RoutedVlm.from_vlm(vlm, tag_encoder, lora=lora, **remote, **settings)
    model.config.vlm, model.config.tag_encoder = name, encoder
    return model.train(), processor


class VlmRouterTrainer(StageTraining, Trainer):
    """
    The loss of the answers' tokens alone, computed here: not every family's own counts them over accumulated batches.

    Args:
        recipe ([`VlmRouterRecipe`]): its learning rates, and written beside every checkpoint.
        score (`Callable`, *optional*): `(model) -> dict[str, float]`, called in every evaluation.
    """

    evaluates_loss = False

    def __init__(self, *args: Any, recipe: VlmRouterRecipe, score: Any = None, **kwargs: Any):
        self.recipe, self.score, self.learning_rates = recipe, score, recipe.learning_rates
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss below is divided by the tokens of all accumulated batches

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")  # (B, T)
        outputs = model(**inputs, use_cache=False)
        logits, labels = answer_logits(outputs.logits, labels, "decoder_input_ids" in inputs)
        supervised = labels != IGNORED  # (B, T)
        loss = torch.nn.functional.cross_entropy(logits[supervised].float(), labels[supervised], reduction="sum")
        if num_items_in_batch is None:
            loss = loss / supervised.sum()
        else:
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:  # it counts all processes, whose gradients are averaged
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _issue_warnings_after_load(self, load_result):
        """A checkpoint holds what is new alone; that it holds all of it is what matters."""
        missing = [name for name in load_result.missing_keys if self.accelerator.unwrap_model(self.model).is_new(name)]
        if missing or load_result.unexpected_keys:
            first = (missing or load_result.unexpected_keys)[0]
            raise ValueError(f"checkpoint and recipe differ, first in {first!r}: resume with the recipe beside it")


def _scorer(questions: Any, processor: Any, recipe: VlmRouterRecipe) -> Any:
    if questions is None:
        return None
    evaluator = GenerationEvaluator(max_new_tokens=recipe.data.max_new_tokens, resamples=0, progress=False)
    return lambda model: evaluator(model, processor, questions)


def check_resumable(checkpoint: str | os.PathLike, recipe: VlmRouterRecipe) -> Path:
    """The checkpoint folder, if a run with this recipe can go on from it; a `ValueError` if not."""
    return same_recipe_checkpoint(checkpoint, "poise sft --config vlm_router", recipe, ("model", "lora"))


def summary(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Lines that tell how a run ended."""
    if metrics.get("decision_costs"):
        worth = {name: f"{value:.3f}" for name, value in metrics["decision_costs"].items()}
        yield (
            f"right answers with both streams {worth['both']}, tags alone {worth['tags_alone']}, image alone "
            f"{worth['image_alone']}: an image is left out where its failure is more probable than "
            f"{worth['threshold_image']}"
        )
    for moment in ("before", "after"):
        if moment in metrics:
            scores = {name.removeprefix("eval_"): value for name, value in metrics[moment].items()}
            shown = [f"{n} {v:.3f}" for n, v in scores.items() if not is_bound(n, scores) and not n.endswith("samples")]
            yield f"{moment}: " + ", ".join(shown[:4])
