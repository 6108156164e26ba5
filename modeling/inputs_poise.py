"""What the model reads, named and explained once: both model classes take these inputs."""

import inspect
from typing import TypedDict

import torch


class ImageInputs(TypedDict, total=False):
    """
    Inputs of N images, in the reading order of the batch; [`PoiseProcessor`] makes them.

    `pixel_values` (N, 3, H, W): the images.
    `tag_input_ids`, `tag_attention_mask`, `tag_scores` (N, L): their tags; an all-zero mask row is an image without.
    `question_input_ids`, `question_attention_mask` (N, Lq): what is asked about each, in the tag encoder's vocabulary.
    `vision_features` (N, S, P, Dv), `image_profile` (N, 6·L): what `encode_image` made of the images before, in place
    of `pixel_values`; the second for `router_type="reliability"` alone.
    `tag_features` (N, L, Dt): what a frozen tag encoder made of the tags before (`soft_prompt.encode`).
    """

    pixel_values: torch.FloatTensor | None
    tag_input_ids: torch.LongTensor | None
    tag_attention_mask: torch.LongTensor | None
    tag_scores: torch.FloatTensor | None
    question_input_ids: torch.LongTensor | None
    question_attention_mask: torch.LongTensor | None
    vision_features: torch.FloatTensor | None
    image_profile: torch.FloatTensor | None
    tag_features: torch.FloatTensor | None


class PoiseInputs(ImageInputs, total=False):
    """
    Inputs of both model classes beside `input_ids`: those of images, and

    `attention_mask` (B, T), `position_ids` (B, T) (decoder-only models), `past_key_values`, `use_cache`, and
    `inputs_embeds` (B, T, D) in place of `input_ids`: as every transformers model takes them.
    `mm_encoder_outputs`: `{"image": features}` of `get_image_features`, in place of the images' inputs.
    `encoder_outputs`, `decoder_input_ids`, `decoder_attention_mask`, `decoder_inputs_embeds`: of encoder-decoders.
    `task_ids` (B,), or (B, T) for packed rows: places in `ADAPTER_TASKS`, read by task-routed adapters; the first task
    when left out.
    """

    attention_mask: torch.Tensor | None
    position_ids: torch.LongTensor | None
    past_key_values: object | None
    inputs_embeds: torch.FloatTensor | None
    mm_encoder_outputs: dict | None
    encoder_outputs: object | None
    decoder_input_ids: torch.LongTensor | None
    decoder_attention_mask: torch.Tensor | None
    decoder_inputs_embeds: torch.FloatTensor | None
    task_ids: torch.LongTensor | None
    use_cache: bool | None


IMAGE_INPUTS = tuple(ImageInputs.__annotations__)
STREAM_INPUTS = (*IMAGE_INPUTS, "mm_encoder_outputs", "inputs_embeds", "encoder_outputs", "task_ids")


def takes_poise_inputs(forward):
    """
    Decorator: shows the names of [`PoiseInputs`] in the signature of a `forward(self, ..., **kwargs)`.

    `generate` and `Trainer` read signatures: what is not named there they refuse or drop.
    """
    signature = inspect.signature(forward)
    *own, rest = signature.parameters.values()
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in PoiseInputs.__annotations__.items()
    ]
    forward.__signature__ = signature.replace(parameters=[*own, *named, rest])
    return forward
