"""The trainer of the tag encoder: transformers' Trainer, with the scores that tell whether tags mean captions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import Trainer

from ..parameter_groups import optimizer_groups
from ..stage_trainer import StageTraining
from .model import TagEmbedder
from .recipe import TagEncoderRecipe


class TagEncoderTrainer(StageTraining, Trainer):
    """
    Args:
        model ([`TagEmbedder`])
        learning_rates (`Mapping`): of `tag_encoder` and `score_embedding`.
        score (`Callable`, *optional*): `(model) -> dict[str, float]`, called in every evaluation.
        recipe ([`TagEncoderRecipe`], *optional*): written beside every checkpoint.
    """

    evaluates_loss = False

    def __init__(
        self,
        model: TagEmbedder,
        args: Any,
        learning_rates: Mapping[str, Any],
        train_dataset: Sequence[Any],
        score: Callable[[TagEmbedder], dict[str, float]] | None = None,
        recipe: TagEncoderRecipe | None = None,
        **kwargs: Any,
    ):
        self.learning_rates, self.score, self.recipe = dict(learning_rates), score, recipe
        args.remove_unused_columns = False
        # The Trainer asks for an evaluation set before it evaluates; which images are asked about is `score`'s affair.
        eval_dataset = train_dataset if score is not None else None
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)

    def parameter_groups(self, model):
        """By group and decay; a group without a rate is frozen."""
        for name, parameter in model.named_parameters():
            if group_of(name) not in self.learning_rates:
                parameter.requires_grad_(False)
        learning = {group_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        rates = {group: rate for group, rate in self.learning_rates.items() if group in learning}
        return optimizer_groups(model, rates, self.args.weight_decay, group_of)


def group_of(name: str, groups: Iterable[str] = ()) -> str:
    """Group of a parameter by its full name."""
    return "score_embedding" if "score_embedding" in name.split(".") else "tag_encoder"
