"""Ridge initialization: soft prompt and projector start as regressions onto the language model's own embeddings.

A random projection means nothing to the language model, and until it is learned every question is answered from the
prior or from the stream that can be read first, which is then relied on. But what is to be said is known:

* Soft prompt ([`align_words`]): both the tag encoder and the language model know the words of tags, so the projection
  starts as the ridge regression from the features of words in lists of tags to the embeddings of these words. Nothing
  is trained, and no image is needed.
* Projector ([`align_pictures`]): LLaVA pays for a stage of its own to teach it words (arXiv 2304.08485, section 4.2).
  Here it costs one pass over a few thousand tagged images: the last layer starts as the ridge regression from the mean
  of its hidden tokens to the mean embedding, weighted by score, of the words of the image's tags. The mean over tokens
  commutes with a linear layer, so a map that fits images as wholes can be applied to each token, and what a patch shows
  is what its token says. Tags may miss and invent; an error that is the same for all images drops out with the mean.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ...modeling.vision_features import encode_image
from ...processing import PoiseProcessor, Tag
from ...processing.tag_tokens import tokenize_tags

Tags = Sequence[Sequence[Any]]
Batches = Iterable[tuple[torch.Tensor, Sequence[Tags]]]

BATCH = 64
NUM_LISTS = 512
TAGS_PER_LIST = 4
MOST_WORDS = 4096
RIDGE = 1e-3  # of the mean squared feature


def word_targets(model: PreTrainedModel, processor: PoiseProcessor) -> dict[int, torch.Tensor]:
    """The language model's embedding (D,) of every whole word in the tag encoder's vocabulary, by token id.

    A word that the language model spells in several pieces gets their mean, as a first guess.
    """
    special = set(processor.tag_tokenizer.all_special_ids)
    vocabulary = {
        token: index
        for token, index in processor.tag_tokenizer.get_vocab().items()
        if index not in special and (token.isalpha() or token == ",")
    }
    words = sorted(vocabulary, key=vocabulary.__getitem__)[: 4 * MOST_WORDS]
    # A leading space: inside a sentence is where byte-pair vocabularies keep their whole words.
    spelled = processor.tokenizer([" " + word for word in words], add_special_tokens=False)["input_ids"]
    table = model.get_input_embeddings().weight.detach()  # (V, D)
    unknown = processor.tokenizer.unk_token_id
    pairs = [(vocabulary[word], ids) for word, ids in zip(words, spelled, strict=True) if ids and unknown not in ids]
    pairs.sort(key=lambda pair: len(pair[1]))
    return {index: table[ids].float().mean(0) for index, ids in pairs[:MOST_WORDS] if len(ids) <= 3}


@torch.no_grad()
def align_words(model: PreTrainedModel, processor: PoiseProcessor, seed: int = 0) -> float:
    """
    Set the projection of a dynamic soft prompt to the ridge regression described above.

    Args:
        model: a Poise model with `soft_prompt_type="dynamic"` and pooling "tokens" or "mean", which keep words apart or
            average them; queries have no words to start from.
        processor ([`PoiseProcessor`]): made for it.
        seed (`int`, *optional*, defaults to 0): draws the lists of words.

    Returns:
        Share of the variance of the words' embeddings that the projection explains.

    Raises:
        ValueError: another prompt, or fewer shared words than there are features to fit.
    """
    config = model.config
    if config.soft_prompt_type != "dynamic" or config.soft_prompt_pooling == "queries":
        raise ValueError(
            f"align_words needs soft_prompt_type='dynamic' with soft_prompt_pooling='tokens' or 'mean', not "
            f"{config.soft_prompt_type!r} with {config.soft_prompt_pooling!r}: set align_words=false"
        )
    targets = word_targets(model, processor)
    if len(targets) < 16:
        raise ValueError(
            f"align_words found {len(targets)} words that both tokenizers know: set align_words=false here"
        )
    features, wanted = _features_and_targets(model, processor, targets, seed)  # (n, Dt), (n, D)
    centre, weight, explained = _ridge(features, wanted)  # (Dt,), (D, Dt)
    projection = model.model.soft_prompt.projection
    projection.weight.copy_(weight)
    projection.bias.copy_(wanted.mean(0) - weight @ centre)
    return explained


def _features_and_targets(model, processor, targets, seed):
    draw = random.Random(seed)
    words = [processor.tag_tokenizer.convert_ids_to_tokens(index) for index in targets]
    words = [word for word in words if word != ","]
    lists = [
        [Tag(" ".join(draw.sample(words, draw.choice((1, 2)))), 1.0) for _ in range(TAGS_PER_LIST)]
        for _ in range(NUM_LISTS)
    ]
    with_scores = model.config.tag_score_encoding == "text"
    batch = {
        name: torch.from_numpy(rows)
        for name, rows in tokenize_tags(lists, processor.tag_tokenizer, with_scores).items()
    }
    features, wanted = [], []
    for start in range(0, NUM_LISTS, 64):
        ids, mask, scores = (batch[name][start : start + 64].to(model.device) for name in
                             ("tag_input_ids", "tag_attention_mask", "tag_scores"))  # fmt: skip
        encoded = model.model.soft_prompt.encode(model.model.tag_encoder, ids, mask.bool(), scores)  # (N, L, Dt)
        for row, place in zip(*torch.where(mask.bool()), strict=True):
            index = int(ids[row, place])
            if index in targets:
                features.append(encoded[row, place].float())
                wanted.append(targets[index])
    return torch.stack(features), torch.stack(wanted)


def feature_batches(model: PreTrainedModel, processor: PoiseProcessor, records: Any, limit: int) -> Iterator:
    """`vision_features` (B, S, P, Dv) and tags of the first `limit` records that have an image and tags."""
    source = (records[index] for index in range(len(records))) if hasattr(records, "__len__") else iter(records)
    usable = (record for record in source if record.get("image") is not None and record.get("tags"))
    left = limit
    with tqdm(total=limit, desc="aligning images", unit="image", leave=False, disable=None) as bar:
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
        batches (`Iterable`): `(vision_features (B, S, P, Dv), tags of the B images)`, such as [`feature_batches`].

    Returns:
        Share of the variance of the images' tag embeddings that the regression explains.

    Raises:
        ValueError: fewer tagged images than the projector has hidden channels.
    """
    projector = model.model.projector
    words = WordEmbeddings(model, processor)
    hidden_of = _HiddenTokens(projector)
    pooled, wanted, energy = [], [], []
    for features, tags in batches:
        hidden = hidden_of(features.to(model.model.projector_dtype)).double()  # (B, P, H)
        pooled.append(hidden.mean(1))  # (B, H)
        wanted.append(torch.stack([words.of_tags(of_image) for of_image in tags]).to(hidden.device))  # (B, D)
        energy.append(hidden.flatten(0, 1).mT @ hidden.flatten(0, 1) / hidden.shape[1])  # (H, H)
    hidden_of.close()
    last = projector.last_linear
    if sum(map(len, pooled)) < last.in_features:
        raise ValueError(
            f"align_pictures found {sum(map(len, pooled))} images with tags for a projector of {last.in_features} "
            "channels: give more tagged images, or set model.align_pictures=0"
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
