"""Poise models of random weights, and batches for them, small enough to be made in milliseconds.

A `Sample` says what one row of a batch is about; `batch_of` lays samples out as the processor would. Images and tags
are drawn from seeds, so that the same sample is the same numbers in every batch.
"""

from dataclasses import dataclass, replace

import torch
from transformers import BertConfig, CLIPVisionConfig, LlamaConfig, SiglipVisionConfig, T5Config

from poise.modeling import PoiseConfig, PoiseForConditionalGeneration
from poise.modeling.vision_features import encode_image

PAD, BOS, EOS, PLACEHOLDER = 0, 1, 2, 5
VOCABULARY, TAG_VOCABULARY = 60, 50
IMAGE_SIZE, TAG_LENGTH, QUESTION_LENGTH = 24, 6, 6
LANGUAGES = ("llama", "t5")
ROUTERS = ("none", "gate", "channel", "reliability")

_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def text_config(language, **fields):
    """Two layers, width 48. T5 has one more decoder layer than encoder layers: that has broken generation before."""
    if language == "llama":
        shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        special = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
        return LlamaConfig(**{**shape, **special, "vocab_size": VOCABULARY, "initializer_range": 0.2, **fields})
    shape = {"d_model": 48, "d_ff": 64, "d_kv": 12, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD}
    return T5Config(**{**shape, **special, "vocab_size": VOCABULARY, "dropout_rate": 0.0, **fields})


def vision_config(kind="siglip", **fields):
    """A tower of 3 x 3 patches, with or without a class token."""
    config_class = {"siglip": SiglipVisionConfig, "clip": CLIPVisionConfig}[kind]
    fields = {"image_size": IMAGE_SIZE, "patch_size": 8, **_SHAPE, **fields}
    return config_class(**fields, **({"vision_use_head": False} if kind == "siglip" else {}))


def tag_encoder_config(**fields):
    """BERT of two layers, width 32."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(**{**_SHAPE, **dropout, "vocab_size": TAG_VOCABULARY, **fields})


def tiny_config(language="llama", vision="siglip", text_fields=None, **fields):
    """A configuration; `fields` are those of `PoiseConfig`."""
    parts = {
        "vision_config": vision_config(vision),
        "text_config": text_config(language, **(text_fields or {})),
        "tag_encoder_config": tag_encoder_config() if fields.get("soft_prompt_type", "dynamic") == "dynamic" else None,
    }
    return PoiseConfig(**parts, **{"image_token_id": PLACEHOLDER, "soft_prompt_length": 2, **fields})


def tiny_model(language="llama", seed=0, **fields):
    """A model in evaluation mode, untrained: every branch that starts closed is closed."""
    torch.manual_seed(seed)
    return PoiseForConditionalGeneration(tiny_config(language, **fields)).eval()


def open_model(language="llama", seed=0, **fields):
    """
    A model as after training: no branch is closed, every router does something, `reliability` has fitted statistics.
    """
    model = tiny_model(language, seed, **fields)
    open_branches(model)
    if fields.get("router_type") == "reliability":
        fit_statistics(model)
    return model


@torch.no_grad()
def open_branches(model, std=0.3, seed=1):
    """Redraw the parameters of everything that training would move."""
    generator = torch.Generator().manual_seed(seed)
    for module in (model.model.projector, model.model.soft_prompt, model.model.router):
        for name, parameter in [] if module is None else module.named_parameters():
            scale = 0.1 * std if name.startswith("gate") else std  # a softmax that is not saturated
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def fit_statistics(model, count=600, seed=2):
    """Let a reliability router see `count` images with their tags, as training would."""
    model.train()
    model.get_image_features(**image_inputs(range(seed * 10_000, seed * 10_000 + count)))
    model.eval()


def cached_features(model, batch):
    """The batch with what the frozen tower made of its images in their place, as a feature cache gives it."""
    batch = dict(batch)
    features, profile = encode_image(model.model.vision_tower, batch.pop("pixel_values"), model.config)
    return {**batch, "vision_features": features, **({} if profile is None else {"image_profile": profile})}


@dataclass(frozen=True)
class Sample:
    """
    One row of a batch.

    `images`: a seed for each. `tags`: for each image whether it has tags. `question`, `answer`: token ids.
    """

    images: tuple[int, ...] = (1,)
    tags: tuple[bool, ...] | None = None
    question: tuple[int, ...] = (7, 8, 9)
    answer: tuple[int, ...] = (20, 21)

    @property
    def has_tags(self):
        return self.tags if self.tags is not None else (True,) * len(self.images)

    def but(self, **changes):
        """The same sample with another question, answer, ..."""
        return replace(self, **changes)


# Different lengths, numbers of images, with and without tags, and one row of text alone.
MIXED = (
    Sample(images=(1,)),
    Sample(images=(2, 3), question=(10, 11, 12, 13, 14), answer=(22,)),
    Sample(images=(4,), tags=(False,), question=(15,), answer=(23, 24, 25)),
    Sample(images=(), question=(16, 17), answer=(26, 27)),
    Sample(images=(5, 6), tags=(True, False), question=(18,), answer=(28,)),
)


def image_inputs(seeds, tags=True, tag_length=TAG_LENGTH, questions=None):
    """
    Inputs of images: the vision tower's and, with `tags` true or one bool per image, their tags'; with `questions`,
    token ids for each image, theirs, too (drawn by default).
    """
    seeds = list(seeds)
    has_tags = [tags] * len(seeds) if isinstance(tags, bool) else list(tags)
    rows = [_image(seed, tag_length) for seed in seeds]
    inputs = {"pixel_values": torch.stack([row[0] for row in rows])}
    if any(has_tags):
        keep = torch.tensor(has_tags)[:, None]
        for place, name in enumerate(("tag_input_ids", "tag_attention_mask", "tag_scores"), start=1):
            values = torch.stack([row[place] for row in rows])
            inputs[name] = torch.where(keep, values, torch.zeros_like(values))
    if questions is None:
        questions = [(5 + seed % 40, 6 + seed % 30, 7) for seed in seeds]
    asked = padded([list(question) for question in questions], 0, pad_to=QUESTION_LENGTH)
    return {**inputs, "question_input_ids": asked["input_ids"], "question_attention_mask": asked["attention_mask"]}


def _image(seed, tag_length):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    ids = torch.randint(5, TAG_VOCABULARY, (tag_length,), generator=generator)
    mask = (torch.arange(tag_length) < 2 + seed % (tag_length - 1)).long()
    return pixels, ids * mask, mask, torch.rand(tag_length, generator=generator) * mask


def batch_of(model, samples, side="right", answers=True, labels=False, pad_to=None):
    """
    Samples as the processor lays them out.

    Args:
        side: where the padding goes. answers: a decoder-only sequence ends with the answer. labels: add them.
        pad_to: pads to that length at least.
    """
    samples = [samples] if isinstance(samples, Sample) else list(samples)
    config = model.config
    run = [PLACEHOLDER] * (config.num_image_tokens + config.num_prompt_tokens)
    prompts = [[BOS, *(token for _ in s.images for token in run), *s.question] for s in samples]
    seq2seq = config.is_encoder_decoder
    with_answer = answers and not seq2seq
    rows = [[*p, *s.answer, EOS] if with_answer else p for p, s in zip(prompts, samples, strict=True)]
    batch = padded(rows, PAD, side, pad_to)
    if labels and seq2seq:
        batch["labels"] = padded([[*s.answer, EOS] for s in samples], -100)["input_ids"]
    elif labels:
        targets = [[-100] * len(p) + r[len(p) :] for p, r in zip(prompts, rows, strict=True)]
        batch["labels"] = padded(targets, -100, side, pad_to)["input_ids"]
    seeds = [seed for s in samples for seed in s.images]
    if seeds:
        questions = [s.question for s in samples for _ in s.images]
        inputs = image_inputs(seeds, [has for s in samples for has in s.has_tags], questions=questions)
        dynamic = config.soft_prompt_type == "dynamic"
        batch.update({name: value for name, value in inputs.items() if dynamic or name == "pixel_values"})
    return batch


def padded(rows, value, side="right", pad_to=None):
    """Token ids and their attention mask, (B, T) each."""
    length = max(pad_to or 0, max(len(row) for row in rows))
    ids = torch.full((len(rows), length), value)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[place, where] = torch.tensor(row)
        mask[place, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


def decoder_inputs(model, samples):
    """What an encoder-decoder needs besides to give logits: the answers as decoder input."""
    if not model.config.is_encoder_decoder:
        return {}
    samples = [samples] if isinstance(samples, Sample) else samples
    return {"decoder_input_ids": padded([[PAD, *s.answer] for s in samples], PAD)["input_ids"]}


@torch.no_grad()
def real_logits(model, samples, side="right", **arguments):
    """Logits of every sample at its own, unpadded positions: a list of (T_i, V)."""
    samples = [samples] if isinstance(samples, Sample) else list(samples)
    batch = batch_of(model, samples, side)
    mask = batch["attention_mask"].bool()
    positions = {}
    if side == "left" and not model.config.is_encoder_decoder:
        positions["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
    logits = model(**batch, **positions, **decoder_inputs(model, samples), **arguments).logits
    if model.config.is_encoder_decoder:
        return [row[: 1 + len(s.answer)] for row, s in zip(logits, samples, strict=True)]
    return [row[keep] for row, keep in zip(logits, mask, strict=True)]
