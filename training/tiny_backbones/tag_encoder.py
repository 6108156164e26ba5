"""The tiny tag encoder: a BERT of width 64, pretrained by masked words on tag lists and captions of scenes."""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from ...processing.scenes.layout import COLORS, SHAPES
from ...processing.scenes.scenes import Scenes
from .corpus import CORPUS_SIZE
from .pretraining import linear_probe, pretrain
from .tokenizers import train_tag_tokenizer

MAX_LENGTH = 128
BATCH = 64
_TOKENIZER_SCENES = 2_000


def tag_texts(scenes: Scenes, first: int, count: int) -> list[str]:
    """One text a scene, in turn: tag names, tags with scores, a caption, tags followed by a caption."""
    texts = []
    for record in scenes.records(np.arange(first, first + count), images=False):
        number = record["metadata"]["scene"]
        caption = record["captions"][number // 4 % 4]
        names = ", ".join(name for name, _ in record["tags"])
        scored = ", ".join(f"{name} {score:.2f}" for name, score in record["tags"])
        texts.append((names or caption, scored or caption, caption, f"{scored} . {caption}")[number % 4])
    return texts


def train_tag_encoder(steps: int, seed: int = 0) -> tuple[BertForMaskedLM, BertTokenizerFast]:
    """The masked language model (its `.bert` is the encoder) and its tokenizer."""
    torch.manual_seed(seed)
    scenes = Scenes("train", size=CORPUS_SIZE, seed=seed + 2, tasks=["caption"])
    tokenizer = train_tag_tokenizer(tag_texts(scenes, 0, _TOKENIZER_SCENES), MAX_LENGTH)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForMaskedLM(config)
    # With the pooler, which this training leaves as it is: without one the saved encoder would load with a warning.
    model.bert = BertModel(config)
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        first = 0
        while True:
            yield masked_batch(tokenizer, tag_texts(scenes, first, BATCH), generator)
            first += BATCH

    pretrain([model], lambda batch: model(**batch).loss, batches(), steps, learning_rate=3e-3, name="tag_encoder")
    return model, tokenizer


def masked_batch(tokenizer: BertTokenizerFast, texts: list[str], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask, labels (B, L); a fifth of the words is masked (Devlin et al. 2019, section 3.1)."""
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt", return_special_tokens_mask=True)
    real = batch["special_tokens_mask"] == 0  # (B, L)
    hidden = (torch.rand(real.shape, generator=generator) < 0.2) & real
    hidden[:, 1] |= ~hidden.any(dim=1)  # every text hides something
    labels = batch["input_ids"].masked_fill(~hidden, -100)
    return {
        "input_ids": batch["input_ids"].masked_fill(hidden, tokenizer.mask_token_id),
        "attention_mask": batch["attention_mask"],
        "labels": labels,
    }


@torch.no_grad()
def check_tag_encoder(encoder: BertModel, tokenizer: BertTokenizerFast) -> dict:
    """How well a linear reader of the mean token tells which colours and shapes the tags name (with their scores).

    Returns:
        dict of `color_probe`, `shape_probe`: share of the (scene, name) decisions "is it among the tags ?" that are
        right.
    """
    encoder.eval()
    features, labels = {}, {}
    for split, count in (("train", 768), ("test", 256)):
        records = Scenes(split, size=count, seed=7, prior_strength=0.0, tasks=["caption"]).records(range(count), False)
        texts = [", ".join(f"{name} {score:.2f}" for name, score in record["tags"]) for record in records]
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states)  # (N, L, 1)
        features[split] = (states * mask).sum(dim=1) / mask.sum(dim=1)  # (N, D)
        labels[split] = [set(" ".join(name for name, _ in record["tags"]).split()) for record in records]
    result = {}
    for kind, names in (("color_probe", COLORS), ("shape_probe", SHAPES)):
        truth = {s: torch.tensor([[n in words for n in names] for words in labels[s]]).double() for s in labels}
        predicted = linear_probe(features["train"], truth["train"], features["test"])  # (N, 8)
        result[kind] = ((predicted > 0.5) == (truth["test"] > 0.5)).double().mean().item()
    return result
