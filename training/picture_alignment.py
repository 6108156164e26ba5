"""The projector's first words: picture tokens that start near the words of what the pictures show.

A random projector speaks gibberish to the language model, and until it is learned every question is answered from the
prior or from the tags; what is learned first is then relied on. LLaVA pays for a stage of its own to teach the
projector words (arXiv 2304.08485, section 4.2). Here it costs one pass over a few thousand tagged pictures: the
projector's last layer starts as the ridge regression from the mean of its hidden tokens to the mean embedding, weighted
by score, of the words of the picture's tags. The mean over tokens commutes with a linear layer, so a map that fits
pictures as wholes can be applied to each token, and what a patch shows is what its token says. Tags may miss and
invent; an error that is the same for all pictures drops out with the mean.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from poise.modeling.vision_features import encode_image
from poise.processing import PoiseProcessor

logger = logging.getLogger(__name__)

BATCH = 64
RIDGE = 1e-3  # of the mean squared hidden feature
Tags = Sequence[Sequence[Any]]
Batches = Iterable[tuple[torch.Tensor, Sequence[Tags]]]


def feature_batches(model: PreTrainedModel, processor: PoiseProcessor, records: Any, limit: int) -> Iterator:
    """`vision_features` (B, S, P, Dv) and tags of the first `limit` records that have a picture and tags."""
    source = (records[index] for index in range(len(records))) if hasattr(records, "__len__") else iter(records)
    usable = (record for record in source if record.get("image") is not None and record.get("tags"))
    left = limit
    with tqdm(total=limit, desc="aligning pictures", unit="picture", leave=False, disable=None) as bar:
        while group := list(islice(usable, min(BATCH, left))):
            images = [record["image"].convert("RGB") for record in group]
            pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]  # (B, 3, H, W)
            features, _ = encode_image(model.model.vision_tower, pixels.to(model.device), model.config)
            yield features, [record["tags"] for record in group]
            left -= len(group)
            bar.update(len(group))


class WordEmbeddings:
    """Mean embedding of a tag's words as the language model reads them inside a sentence; each spelling once."""

    def __init__(self, model: PreTrainedModel, processor: PoiseProcessor):
        self.embed, self.tokenizer = model.get_input_embeddings(), processor.tokenizer
        self.known: dict[str, torch.Tensor] = {}

    def of(self, name: str) -> torch.Tensor:
        """(D,) in float64."""
        if name not in self.known:
            ids = self.tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
            place = torch.tensor(ids, device=self.embed.weight.device)
            self.known[name] = self.embed(place).double().mean(0)  # (D,)
        return self.known[name]

    def of_tags(self, tags: Tags) -> torch.Tensor:
        """Sum over tags, weighted by score, (D,)."""
        return torch.stack([float(score) * self.of(str(name)) for name, score in tags]).sum(0)

    @property
    def size(self) -> torch.Tensor:
        """Root mean square of an embedding's entries."""
        table = self.embed(torch.arange(self.embed.weight.shape[0], device=self.embed.weight.device))  # (V, D)
        return table.double().square().mean().sqrt()


@torch.no_grad()
def align_pictures(model: PreTrainedModel, processor: PoiseProcessor, batches: Batches) -> float:
    """
    Set the last layer of the projector to the ridge regression described above, at the size of the language model's
    own embeddings.

    Args:
        model: a Poise model; processor ([`PoiseProcessor`]): made for it.
        batches (`Iterable`): `(vision_features (B, S, P, Dv), tags of the B pictures)`, such as [`feature_batches`].

    Returns:
        Share of the variance of the pictures' tag embeddings that the regression explains.

    Raises:
        ValueError: fewer tagged pictures than the projector has hidden channels.
    """
    projector = model.model.projector
    words = WordEmbeddings(model, processor)
    hidden_of = _HiddenTokens(projector)
    pooled, wanted, energy = [], [], []
    for features, tags in batches:
        hidden = hidden_of(features.to(model.model.projector_dtype)).double()  # (B, P, H)
        pooled.append(hidden.mean(1))  # (B, H)
        wanted.append(torch.stack([words.of_tags(of_picture) for of_picture in tags]).to(hidden.device))  # (B, D)
        energy.append(hidden.flatten(0, 1).mT @ hidden.flatten(0, 1) / hidden.shape[1])  # (H, H)
    hidden_of.close()
    last = projector.last_linear
    if sum(map(len, pooled)) < last.in_features:
        raise ValueError(
            f"align_pictures found {sum(map(len, pooled))} pictures with tags for a projector of {last.in_features} "
            "channels: give more tagged pictures, or set model.align_pictures=0"
        )
    mean, weight, explained = _ridge(torch.cat(pooled), torch.cat(wanted))
    # Tokens differ more than their means do: what counts for the size is the energy of single tokens.
    count = sum(map(len, pooled))
    second = torch.stack(energy).sum(0) / count - torch.outer(mean, mean)  # (H, H)
    spread = ((weight @ second) * weight).sum(-1).mean().clamp_min(1e-12).sqrt()
    weight = weight * (words.size / spread)  # (D, H)
    last.weight.copy_(weight)
    last.bias.copy_(-weight @ mean)
    return explained


def _ridge(features: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean of the features (H,), weight (D, H) from centred features to centred targets, share of variance."""
    mean = features.mean(0)  # (H,)
    centred, rest = features - mean, wanted - wanted.mean(0)
    gram = centred.mT @ centred  # (H, H)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    weight = torch.linalg.solve(gram, centred.mT @ rest).mT  # (D, H)
    return mean, weight, float(1 - (rest - centred @ weight.mT).square().sum() / rest.square().sum())


class _HiddenTokens:
    """What the projector's last layer reads, (B, P, H)."""

    def __init__(self, projector: torch.nn.Module):
        self.projector, self.seen = projector, None
        self.hook = projector.last_linear.register_forward_pre_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.seen = inputs[0]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        self.projector(features)
        return self.seen

    def close(self) -> None:
        self.hook.remove()
