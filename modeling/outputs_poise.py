"""What the model returns, beyond what every transformers model returns."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput


@dataclass
class PoiseImageFeatures(BaseModelOutputWithPooling):
    """
    Encoded images.

    `pooler_output`: list of N tensors (P + K, D), image tokens then soft-prompt tokens, as they fill the placeholders.
    `image_hidden_states` (N, P, D), `soft_prompt_hidden_states` (N, K, D), `router_weights` (N, 2): the same, apart.
    `last_hidden_state` (N, prefix + P, Dv) and, on request, `hidden_states`, `attentions`: of the vision tower, where
    it was run.
    """

    image_hidden_states: torch.FloatTensor | None = None
    soft_prompt_hidden_states: torch.FloatTensor | None = None
    router_weights: torch.FloatTensor | None = None


@dataclass
class PoiseModelOutput(ModelOutput):
    """
    Hidden states of the language model over the merged streams, before its head.

    `last_hidden_state` (B, T, D): of the decoder. `image_hidden_states` (N, P, D), `soft_prompt_hidden_states`
    (N, K, D): as the language model read them. `router_weights` (N, 2): weight of the image and of the text
    stream.
    """

    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None
    soft_prompt_hidden_states: torch.FloatTensor | None = None
    router_weights: torch.FloatTensor | None = None


@dataclass
class PoiseOutput(ModelOutput):
    """`PoiseModelOutput` with `loss` () and `logits` (B, T, V) in place of the last hidden state."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None
    soft_prompt_hidden_states: torch.FloatTensor | None = None
    router_weights: torch.FloatTensor | None = None
