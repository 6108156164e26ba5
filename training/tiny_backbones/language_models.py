"""The tiny language models: a Llama and a T5 of width 96, pretrained on scenes in words (see tiny_corpus)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from ...processing.scenes.scenes import Scenes
from .corpus import END, Document, batches, documents, prompt_words, tags_in_words
from .pretraining import pretrain
from .tokenizers import train_text_tokenizer

MAX_LENGTH = 512
BATCH = 32  # documents
ASKED = 256  # scenes of the check
_TOKENIZER_DOCUMENTS = 20_000


def text_tokenizer(encoder_decoder: bool, seed: int = 0) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the first documents of the corpus."""
    texts = [words.removesuffix(END) for document in documents(0, _TOKENIZER_DOCUMENTS, seed) for words, _ in document]
    return train_text_tokenizer(texts, encoder_decoder, MAX_LENGTH)


def causal_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Four layers of width 96, embeddings tied."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        # Without biases a head can look at "the token before" only through what the tokens have in common, which these
        # small embeddings have to grow first; words that belong together then stay apart for thousands of steps.
        attention_bias=True,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def seq2seq_config(tokenizer: PreTrainedTokenizerFast) -> T5Config:
    """Two encoder and two decoder layers of width 96, embeddings tied, no dropout."""
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )


def causal_batch(tokenizer: PreTrainedTokenizerFast, texts: list[Document]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask (B, T) of whole documents, right-padded, and loss weights (B, T).

    What only asks weighs a tenth of what the model has to say: which question comes next cannot be known.
    """
    pieces = [words for document in texts for words, _ in document]
    tokens = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"])
    rows: list[list[int]] = []
    weights: list[list[float]] = []
    for document in texts:
        ids, weight = [], []
        for _, said in document:
            piece = next(tokens)
            ids += piece
            weight += [1.0 if said else 0.1] * len(piece)
        rows.append(ids[:MAX_LENGTH])
        weights.append(weight[:MAX_LENGTH])
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "weights": torch.tensor([row + [0.0] * (length - len(row)) for row in weights]),
    }


def causal_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weighted mean over tokens of the cross-entropy of the next one."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]  # (B, T - 1, V)
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none")
    weights = batch["weights"][:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def seq2seq_batch(tokenizer: PreTrainedTokenizerFast, texts: list[Document]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask (B, T) of what is read, labels (B, T_answer) of what is said; see [`as_pair`]."""
    pairs = [as_pair(document) for document in texts]
    batch = tokenizer([read for read, _ in pairs], padding=True, truncation=True, return_tensors="pt")
    answers = tokenizer([said for _, said in pairs], padding=True, truncation=True, return_tensors="pt")
    labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def as_pair(document: Document) -> tuple[str, str]:
    """What an encoder reads and a decoder says of a document: the last thing said, after its question and the context.

    Turns in between are left out; of a caption alone the second half is said.
    """
    *read, (said, _) = document
    said = said.removesuffix(END)
    if not read:
        words = said.split(" ")
        return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
    is_retold = all(is_said for _, is_said in read)
    kept = read if is_retold or len(read) < 3 else [read[0], read[-1]]
    return " ".join(words for words, _ in kept), said


def train_language_model(
    encoder_decoder: bool, steps: int, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A pretrained tiny language model and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = text_tokenizer(encoder_decoder, seed)
    model: PreTrainedModel
    if encoder_decoder:
        model, collate, name = T5ForConditionalGeneration(seq2seq_config(tokenizer)), seq2seq_batch, "seq2seq_lm"
    else:
        model, collate, name = LlamaForCausalLM(causal_config(tokenizer)), causal_batch, "causal_lm"
        # transformers' 0.02 is made for wide models; at width 96 it leaves the first hundred steps without a signal.
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.06)

    def collated() -> Iterator[dict[str, torch.Tensor]]:
        for texts in batches(BATCH, seed):
            yield collate(tokenizer, texts)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss if encoder_decoder else causal_loss(model, batch)

    pretrain([model], loss_of, collated(), steps, learning_rate=3e-3, name=name)
    model.generation_config.max_new_tokens = 32
    return model, tokenizer


@torch.no_grad()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_new_tokens: int = 4
) -> list[str]:
    """Greedy answers to text prompts."""
    result = []
    for start in range(0, len(prompts), 128):
        batch = tokenizer(prompts[start : start + 128], padding=True, padding_side="left", return_tensors="pt")
        tokens = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        if not model.config.is_encoder_decoder:
            tokens = tokens[:, batch["input_ids"].shape[1] :]
        result += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in result]


def check_language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict:
    """What the model answers without an image, on scenes whose colours contradict the prior.

    Returns:
        dict of shares of questions: `prior` answered with the prior when there is no context (colour and shape
        questions); `caption_read`, `tags_read` answered from a caption or from clean tags although the prior says
        otherwise; `caption_read_all` answered rightly from a caption with places, over all types of question.
    """
    model.eval()
    broken = Scenes("prior_broken", size=ASKED, tasks=["vqa"], question_types=["color", "shape"], tag_miss_rate=0.0,
                    tag_invention_rate=0.0)  # fmt: skip
    records = broken.records(np.arange(ASKED), images=False)
    questions = [record["question"] for record in records]
    truth = [record["answers"][0] for record in records]
    mixed = Scenes("test", size=ASKED, tasks=["vqa"]).records(np.arange(ASKED), images=False)

    def share(contexts: list[str], asked: list[str], expected: list[str]) -> float:
        prompts = [prompt_words(question, context) for question, context in zip(asked, contexts, strict=True)]
        said = answers(model, tokenizer, prompts)
        return sum(a == b for a, b in zip(said, expected, strict=True)) / len(expected)

    captions = [f"{record['captions'][0]} ." for record in records]
    tags = [tags_in_words(record["tags"]) for record in records]
    places = [f"{record['captions'][3]} ." for record in mixed]
    return {
        "prior": share([""] * ASKED, questions, [record["metadata"]["prior_answer"] for record in records]),
        "caption_read": share(captions, questions, truth),
        "tags_read": share(tags, questions, truth),
        "caption_read_all": share(
            places, [record["question"] for record in mixed], [record["answers"][0] for record in mixed]
        ),
    }
