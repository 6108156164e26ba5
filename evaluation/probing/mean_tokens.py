"""What stands in for a modality that is taken away: the mean token of other prompts, in each of its places."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ...processing.prompts import Prompts
from ..evaluator import Record
from .model_parts import model_parts
from .visual_prompts import VisualPrompts, read_prompts

MODALITIES = ("image", "tags", "question")


@dataclass(frozen=True)
class MeanTokens:
    """
    Attributes:
        image, tag_words, question (D,): mean over pictures and places; of the last the question's own words.
        soft_prompt (K, D): mean over pictures, slot by slot, for each has a role of its own.
        pictures: how many prompts they are of.
    """

    image: torch.Tensor
    tag_words: torch.Tensor
    question: torch.Tensor
    soft_prompt: torch.Tensor
    pictures: int

    def without(self, prompts: VisualPrompts, absent: Iterable[str]) -> torch.Tensor:
        """Embeddings (B, T, D) of prompts with the `absent` ones of `MODALITIES` replaced; number and places stay."""
        changed = prompts.embeddings.clone()  # (B, T, D)
        rows = torch.arange(len(prompts), device=changed.device)[:, None]
        for name in absent:
            if name == "image":
                changed[rows, prompts.image_places] = self.image.to(changed)
            elif name == "tags":
                changed[rows, prompts.prompt_places] = self.soft_prompt.to(changed)
                changed[prompts.tag_words] = self.tag_words.to(changed)
            else:
                changed[prompts.question_words] = self.question.to(changed)
        return changed


@torch.no_grad()
def mean_tokens(
    model: nn.Module,
    processor: Any,
    records: Iterable[Record],
    batch_size: int = 16,
    limit: int = 500,
    progress: bool = True,
) -> MeanTokens:
    """
    Mean tokens of the prompts of `records`, as the language model reads them.

    Args:
        records: task records with pictures, best disjoint from those that are asked about.
        limit (`int`, *optional*, defaults to 500): pictures that are used at most.

    Raises:
        ValueError: no record has a picture.
    """
    parts = model_parts(model)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, tokens: torch.Tensor, count: int) -> None:
        total = tokens.double().cpu()
        sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts.get(name, 0) + count

    with_pictures = (record for record in islice(records, limit) if record["image"] is not None)
    asked = 0
    with tqdm(desc="mean tokens", unit="prompt", disable=not progress) as bar:
        while batch := list(islice(with_pictures, batch_size)):
            prompts = read_prompts(
                parts,
                processor,
                [record["image"] for record in batch],
                [Prompts().question(record) for record in batch],
                [record.get("tags") or [] for record in batch],
            )
            rows = torch.arange(len(prompts), device=prompts.embeddings.device)[:, None]
            image = prompts.image_tokens()  # (B, P, D)
            add("image", image.sum((0, 1)), image.shape[0] * image.shape[1])
            add("soft_prompt", prompts.embeddings[rows, prompts.prompt_places].sum(0), len(prompts))
            for name, words in (("tag_words", prompts.tag_words), ("question", prompts.question_words)):
                add(name, prompts.embeddings[words].sum(0), int(words.sum()))
            asked += len(batch)
            bar.update(len(batch))
    if not asked:
        raise ValueError("records holds no picture to take mean tokens of: give some with images.")
    device = parts.model.device
    means = {name: (total / max(counts[name], 1)).float().to(device) for name, total in sums.items()}
    return MeanTokens(pictures=asked, **means)
