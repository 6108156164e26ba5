"""The trainer of the tag encoder: transformers' Trainer, with the scores that tell whether tags mean captions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from ..stage_trainer import SafeTraining
from .model import TagEmbedder
from .recipe import GROUPS


class TagEncoderTrainer(SafeTraining, Trainer):
    """
    Args:
        model ([`TagEmbedder`])
        learning_rates (`Mapping[str, float]`): of `tag_encoder` and `score_embedding`.
        score (`Callable`, *optional*): `(model) -> dict[str, float]`, called in every evaluation.
        write_files (`Callable`, *optional*): `(folder)`, writes the recipe beside a checkpoint.
    """

    def __init__(
        self,
        model: TagEmbedder,
        args: Any,
        learning_rates: Mapping[str, float],
        train_dataset: Sequence[Any],
        score: Callable[[TagEmbedder], dict[str, float]] | None = None,
        write_files: Callable[[Path], None] | None = None,
        **kwargs: Any,
    ):
        self.learning_rates, self.score, self.write_files = dict(learning_rates), score, write_files
        args.remove_unused_columns = False
        # The Trainer asks for an evaluation set before it evaluates; which images are asked about is `score`'s affair.
        eval_dataset = train_dataset if score is not None else None
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = model or self.model
            groups = _optimizer_groups(model, self.learning_rates, self.args.weight_decay)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            settings.pop("lr", None)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores on the held-out images; every process computes all of them."""
        assert self.score is not None
        scores = self.score(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.write_files is not None:
            self.write_files(Path(output_dir if output_dir is not None else self.args.output_dir))


def _optimizer_groups(
    model: torch.nn.Module, learning_rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups by name and decay; vectors do not decay. A group without a rate is frozen."""
    found: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = GROUPS[1] if "score_embedding" in name.split(".") else GROUPS[0]
        if group not in learning_rates:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            found.setdefault((group, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": float(learning_rates[group]), "weight_decay": weight_decay if decays else 0.0,
         "group": group}
        for (group, decays), parameters in found.items()
    ]  # fmt: skip
