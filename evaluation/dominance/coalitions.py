"""Which modality the answers come from: every subset of image, tags and question, the others taken away.

What is taken away is either replaced by the mean token of other prompts where the language model reads it ("mean": the
number of tokens stays, what they say is gone, but what a router has already moved into another stream stays), or
swapped with another sample's before the model sees it ("swap": everything is natural, but wrong).

Exact Shapley values of a few players: what each adds to the others, averaged over all orders of joining.

Shapley, "A Value for n-Person Games" (1953), equation 13.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np

from ...processing.prompts import target_text
from ..evaluator import Evaluator, Record, Row, groups_of, image_group
from ..generation_evaluator import needed_field
from ..intervals import estimate
from ..metrics.vqa_answers import normalize_answer, vqa_accuracy
from ..probing.answers import answer_log_probabilities, answer_texts, answer_token_ids, greedy_answers
from ..probing.image_features import Change
from ..probing.mean_tokens import MODALITIES, MeanTokens, mean_tokens
from ..probing.parts import ModelParts, model_parts
from ..probing.prompt_batch import PromptBatch
from ..probing.prompt_reading import read_prompts
from ..sample_donors import SwappableRecords

Coalition = tuple[str, ...]


def coalitions(players: Sequence[str]) -> list[Coalition]:
    """All subsets of `players`, in their order, the smallest first."""
    return [some for size in range(len(players) + 1) for some in combinations(players, size)]


def shapley_values(values: Mapping[Coalition, np.ndarray], players: Sequence[str]) -> dict[str, np.ndarray]:
    """
    Shapley value (n,) of each player for each of n games. They add up to the value of all minus the value of none.

    Args:
        values: coalition, as [`coalitions`] writes it → what it is worth (n,).

    Raises:
        ValueError: a coalition is missing.
    """
    for some in coalitions(players):
        if some not in values:
            raise ValueError(f"values lacks the coalition {'+'.join(some) or 'none'}: give all {2 ** len(players)}.")
    count = len(players)
    found = {}
    for player in players:
        others = [name for name in players if name != player]
        total = np.zeros_like(np.asarray(values[()], dtype=float))  # (n,)
        for some in coalitions(others):
            weight = factorial(len(some)) * factorial(count - len(some) - 1) / factorial(count)
            joined = tuple(name for name in players if name in some or name == player)
            total = total + weight * (np.asarray(values[joined]) - np.asarray(values[some]))
        found[player] = total
    return found


BASELINES = ("mean", "swap")
MEASURES = ("accuracy", "log_likelihood")


def players_of(parts: ModelParts, with_tags: bool = False) -> tuple[str, ...]:
    """
    The modalities of a model.

    Tags are one wherever they have places in the sequence: always in a Poise model; as words, if they are told
    (`with_tags`), in any other but one whose router reads them.
    """
    return MODALITIES if parts.family == "poise" or (with_tags and not parts.is_routed) else ("image", "question")


def coalition_name(some: Coalition) -> str:
    return "+".join(some) or "none"


@dataclass(eq=False)
class CoalitionDominance(Evaluator):
    """Accuracy and log-likelihood of the right answer with every subset of the modalities, and exact Shapley shares.

    Of vqa records with an image. With B a baseline ("mean", "swap"), M a measure ("accuracy", "log_likelihood" in
    nats), C a coalition ("image+tags", "question", ..., "none") and P a player, the result holds, with `_low` and
    `_high`:

    * `accuracy`, `log_likelihood`: with everything; `B_M_C` with only C.
    * `B_M_value_P`: Shapley value of P, in the measure's unit; they add up to everything minus nothing.
    * `B_M_share_P`: the same as a share of their sum; left out where the sum is not positive.
    * `conflict_accuracy`, `conflict_prior`, `conflict_samples`: where the prior's answer is wrong (`prior_answer` in
      the metadata, as in scenes): right answers, answers after the prior, how many.

    Args:
        baselines (`Sequence[str]`, *optional*): which of `BASELINES`.
        means ([`MeanTokens`], *optional*): of a calibration set; by default of the records themselves.
        seed (`int`, *optional*, defaults to 0): picks the samples that are swapped in.
        max_new_tokens (`int`, *optional*, defaults to 16): longest answer.
        with_tags (`bool`, *optional*, defaults to `True`): whether a model without a stream for tags is told them.
        **options: of [`Evaluator`].

    Raises:
        ValueError: an unknown baseline, a record without answers, or fewer than two records.
    """

    depends_on = ("baselines", "seed", "max_new_tokens", "with_tags")

    baselines: Sequence[str] = BASELINES
    means: MeanTokens | None = None
    seed: int = 0
    max_new_tokens: int = 16
    with_tags: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.baselines:
            if name not in BASELINES:
                raise ValueError(f"baselines holds {name!r}: choose among {', '.join(BASELINES)}.")
        if not self.baselines:
            raise ValueError("baselines is empty: name at least one.")
        self.baselines = tuple(self.baselines)

    @property
    def primary_metric(self) -> str:  # type: ignore[override]
        return f"{self.baselines[0]}_accuracy_share_image"

    def describe(self) -> str:
        return "coalitions"

    def settings(self) -> dict[str, Any]:
        calibration = None if self.means is None else round(float(self.means.image.norm()), 4)
        return {**super().settings(), "means": calibration}

    def __call__(self, model: Any, processor: Any, records: Iterable[Record]) -> dict[str, float]:
        swappable = SwappableRecords(records, self.seed)
        if "mean" in self.baselines and self.means is None and len(swappable):
            self.means = mean_tokens(
                model, processor, swappable, self.batch_size, progress=self.progress, with_tags=self.with_tags
            )
        return super().__call__(model, processor, swappable)

    def row(self, record: Record) -> Row | None:
        if record["task"] != "vqa" or record.get("image") is None:
            return None
        metadata = record.get("metadata") or {}
        row: Row = {
            "id": str(record["id"]),
            "question": record["question"],
            "answers": needed_field(record, "answers"),
            "swapped_question": record["donors"]["question"],
            **image_group(record),
        }
        if metadata.get("answer_scores"):
            row["answer_scores"] = dict(metadata["answer_scores"])
        if metadata.get("prior_answer") is not None:
            row["prior_answer"] = metadata["prior_answer"]
        return row

    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        parts = model_parts(model)
        players = players_of(parts, self.with_tags)
        targets = answer_token_ids(parts, processor, records, [target_text(record) for record in records])
        for row in rows:
            row |= {"players": list(players), "said": {}, "accuracy": {}, "log_likelihood": {}}
        prompts = self._prompts(parts, processor, records, ())
        self._ask(processor, prompts, (), players, targets, rows, coalition_name(players))
        for some in coalitions(players)[:-1]:
            absent = [name for name in players if name not in some]
            for baseline in self.baselines:
                name = f"{baseline}:{coalition_name(some)}"
                if baseline == "swap":
                    self._ask(
                        processor, self._prompts(parts, processor, records, absent), (), some, targets, rows, name
                    )
                else:
                    assert self.means is not None
                    self._ask(processor, prompts, self.means.without(prompts, absent), some, targets, rows, name)

    def _prompts(self, parts: ModelParts, processor: Any, records: Sequence[Record], swapped: Iterable[str]) -> Any:
        """The records' prompts with the `swapped` modalities of their donors."""

        def of(record: Record, name: str) -> Any:
            return record["donors"][name] if name in swapped else record.get(name) or []

        images, questions, tags = ([of(record, name) for record in records] for name in ("image", "question", "tags"))
        if not (self.with_tags or parts.reads_tags):
            tags = [[] for _ in records]
        return read_prompts(parts, processor, images, questions, tags)

    def _ask(
        self,
        processor: Any,
        prompts: PromptBatch,
        changes: Sequence[Change],
        some: Coalition,
        targets: Sequence[Sequence[int]],
        rows: Sequence[Row],
        name: str,
    ) -> None:
        said = answer_texts(processor, greedy_answers(prompts, changes, self.max_new_tokens))
        likelihoods = answer_log_probabilities(prompts, targets, changes).tolist()
        for row, text, likelihood in zip(rows, said, likelihoods, strict=True):
            row["said"][name] = text
            row["accuracy"][name] = vqa_accuracy(text, row.get("answer_scores") or row["answers"])
            row["log_likelihood"][name] = likelihood

    def score(self, rows: list[Row]) -> dict[str, float]:
        players = tuple(rows[0]["players"])
        everything = coalition_name(players)
        groups = groups_of(rows)
        metrics: dict[str, float] = {}
        for measure in MEASURES:
            metrics |= estimate([row[measure][everything] for row in rows], groups=groups).flat(measure)
        for baseline in self.baselines:
            for measure in MEASURES:
                values = {players: np.array([row[measure][everything] for row in rows])}  # each (n,)
                for some in coalitions(players)[:-1]:
                    name = coalition_name(some)
                    values[some] = np.array([row[measure][f"{baseline}:{name}"] for row in rows])
                    metrics |= estimate(values[some], groups=groups).flat(f"{baseline}_{measure}_{name}")
                metrics |= _shares(f"{baseline}_{measure}", shapley_values(values, players), groups)
        return {**metrics, **_conflict(rows, everything), "samples": float(len(rows))}


def _shares(name: str, values: dict[str, np.ndarray], groups: Sequence[str]) -> dict[str, float]:
    """Shapley values and shares, with intervals, from those of each sample (n,)."""
    metrics: dict[str, float] = {}
    total = sum(values.values())  # (n,)
    for player, some in values.items():
        metrics |= estimate(some, groups=groups).flat(f"{name}_value_{player}")
        if np.mean(total) > 0:
            share = estimate(np.stack([some, total], axis=1), lambda sums, sizes: sums[:, 0] / sums[:, 1], groups)
            metrics |= share.flat(f"{name}_share_{player}")
    return metrics


def _conflict(rows: Sequence[Row], everything: str) -> dict[str, float]:
    """Answers where the prior is wrong; empty where there is no such sample."""
    some = [
        row
        for row in rows
        if "prior_answer" in row and normalize_answer(row["prior_answer"]) not in map(normalize_answer, row["answers"])
    ]
    if not some:
        return {}
    follows = [normalize_answer(row["said"][everything]) == normalize_answer(row["prior_answer"]) for row in some]
    return {
        **estimate([row["accuracy"][everything] for row in some], groups=groups_of(some)).flat("conflict_accuracy"),
        **estimate(follows, groups=groups_of(some)).flat("conflict_prior"),
        "conflict_samples": float(len(some)),
    }
