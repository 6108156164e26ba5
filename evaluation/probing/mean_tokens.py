"""What stands in for a modality that is taken away: the mean token of other prompts, in each of its places."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..evaluator import Record
from .image_features import Change
from .parts import model_parts
from .prompt_batch import PromptBatch
from .prompt_reading import read_records

MODALITIES = ("image", "tags", "question")


@dataclass(frozen=True)
class MeanTokens:
    """
    Attributes:
        image (D',): mean over images and places, of the width of [`ImageFeatures`].
        tag_words, question (D,): mean over prompts and places; of the last the question's own words.
        soft_prompt (K, D'): mean over images, slot by slot, for each has a role of its own.
        images: how many prompts they are of.
    """

    image: torch.Tensor
    tag_words: torch.Tensor
    question: torch.Tensor
    soft_prompt: torch.Tensor
    images: int

    def without(self, prompts: PromptBatch, absent: Iterable[str]) -> list[Change]:
        """What to read so that the `absent` ones of `MODALITIES` say nothing; number and places stay."""
        changes = []
        for name in absent:
            if name == "image":
                changes.append(Change(prompts.image, self.image))
            elif name == "tags":
                if prompts.soft_prompt is not None and prompts.soft_prompt.any():
                    rows = len(prompts)
                    changes.append(Change(prompts.soft_prompt, self.soft_prompt.repeat(rows, 1)))
                if prompts.tag_words is not None:
                    changes.append(Change(prompts.tag_words, self.tag_words))
            elif prompts.question_words is not None:
                changes.append(Change(prompts.question_words, self.question))
        return changes


@torch.no_grad()
def mean_tokens(
    model: nn.Module,
    processor: Any,
    records: Iterable[Record],
    batch_size: int = 16,
    limit: int = 500,
    progress: bool = True,
    with_tags: bool = True,
) -> MeanTokens:
    """
    Mean tokens of the prompts of `records`, as the language model reads them.

    Args:
        records: task records with images, best disjoint from those that are asked about.
        limit (`int`, *optional*, defaults to 500): images that are used at most.
        with_tags (`bool`, *optional*, defaults to `True`): tell the model the records' tags.

    Raises:
        ValueError: no record has an image, or the model's image stands in no place of its sequence.
    """
    parts = model_parts(model)
    parts.check_image_tokens("mean image token")
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, tokens: torch.Tensor, count: int) -> None:
        total = tokens.double().cpu()
        sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts.get(name, 0) + count

    with_images = (record for record in islice(records, limit) if record["image"] is not None)
    asked = 0
    with tqdm(desc="mean tokens", unit="prompt", disable=not progress) as bar:
        while batch := list(islice(with_images, batch_size)):
            prompts = read_records(parts, processor, batch, with_tags)
            image = prompts.image_rows(prompts.image)  # (N, D')
            add("image", image.sum(0), len(image))
            if prompts.soft_prompt is not None:
                slots = prompts.image_rows(prompts.soft_prompt)  # (B·K, D')
                add("soft_prompt", slots.view(len(prompts), -1, slots.shape[-1]).sum(0), len(prompts))
            words = parts.model.get_input_embeddings()(prompts.input_ids)  # (B, T, D)
            for name, chosen in (("tag_words", prompts.tag_words), ("question", prompts.question_words)):
                if chosen is not None:
                    add(name, words[chosen].sum(0), int(chosen.sum()))
            asked += len(batch)
            bar.update(len(batch))
    if not asked:
        raise ValueError("records holds no image to take mean tokens of: give some with images.")
    device = parts.model.device
    means = {name: (total / max(counts[name], 1)).float().to(device) for name, total in sums.items()}
    absent = torch.zeros(0, device=device)
    return MeanTokens(
        image=means["image"],
        tag_words=means.get("tag_words", absent),
        question=means.get("question", absent),
        soft_prompt=means.get("soft_prompt", absent),
        images=asked,
    )
