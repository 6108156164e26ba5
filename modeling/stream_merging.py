"""Where the streams meet the text: features fill the placeholders, and a router of scope "prompt" does its work."""

import torch
from torch import nn
from transformers.utils import torch_compilable_check

from .outputs_poise import PoiseImageFeatures
from .streams import Streams
from .tag_statistics import question_words


class StreamMerging(nn.Module):
    """
    The part of `PoiseModel` that makes one sequence of embeddings out of text, image tokens and soft prompts.

    Needs `config`, `router`, `get_input_embeddings` and `_stand_in` of the class that it is mixed into.
    """

    def get_placeholder_mask(self, input_ids, inputs_embeds, num_features):
        """
        Which positions are placeholders, (B, T) bool.

        Raises:
            ValueError: their number is not that of the features, because text was cut through a picture's run of
                placeholders or a picture is missing.
        """
        if input_ids is None:
            placeholder = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)  # (B, T)
        else:
            mask = input_ids == self.config.image_token_id  # (B, T)
        torch_compilable_check(
            mask.sum() == num_features,
            lambda: (
                f"input_ids holds {int(mask.sum())} placeholder tokens for {num_features} image and soft-prompt "
                "tokens: each picture needs one run of them as PoiseProcessor writes it; do not cut through a picture."
            ),
        )
        return mask

    def embed_streams(
        self,
        input_ids=None,
        inputs_embeds=None,
        attention_mask=None,
        features: PoiseImageFeatures | None = None,
        prompt_mask=None,
    ):
        """
        Embeddings that the language model reads, (B, T, D), and the router's weights.

        `features` fill the placeholders in reading order. `prompt_mask` (B, T') bool marks what a router of scope
        `"prompt"` may see; positions beyond T' are answer.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds: give exactly one of them.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # (B, T, D)
        if features is None:
            return (inputs_embeds + self._stand_in() if self.training else inputs_embeds), None
        tokens = torch.cat(list(features.pooler_output)).to(inputs_embeds.device, inputs_embeds.dtype)  # (N(P+K), D)
        placeholders = self.get_placeholder_mask(input_ids, inputs_embeds, tokens.shape[0])  # (B, T)
        inputs_embeds = inputs_embeds.masked_scatter(placeholders[..., None], tokens)  # (B, T, D)
        if self.router is None or self.config.router_scope == "image":
            return inputs_embeds, features.router_weights
        wide = inputs_embeds.to(self.projector_dtype)  # (B, T, D), what learns may be wider than the language model
        streams = self._prompt_streams(wide, placeholders, attention_mask, features, prompt_mask)
        if self.config.asks_the_question and input_ids is not None:
            streams.question_words = question_words(input_ids, streams.text_mask & ~streams.prompt_mask)  # (B, R)
        routed, weights = self.router(streams)
        # A row of text alone has nothing to route, as in a batch without pictures.
        routed_text = streams.text_mask & streams.is_real[:, None]  # (B, T)
        merged = torch.where(routed_text[..., None], routed.text, wide)  # (B, T, D)
        merged = torch.where(streams.image_mask[..., None], routed.image, merged)  # (B, T, D)
        return merged.to(inputs_embeds.dtype), weights

    def _prompt_streams(self, inputs_embeds, placeholders, attention_mask, features, prompt_mask):
        """One item per sample: its image tokens against its soft prompt and question, in place in the sequence."""
        if features.image_hidden_states is None:
            raise ValueError(
                "router_scope='prompt' reads the whole prompt at once and cannot run on a part of it: "
                "generate with prefill_chunk_size=None, or use router_scope='image'."
            )
        length = inputs_embeds.shape[1]
        visible = torch.ones_like(placeholders)  # (B, T)
        # With a static cache `generate` passes masks per layer type; its `prompt_mask` then says what is padding.
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            visible = last_positions(attention_mask, length).bool()  # (B, T)
        if prompt_mask is not None:
            visible = visible & last_positions(prompt_mask, length).bool()  # (B, T)
        config = self.config
        run = config.num_image_tokens + config.num_prompt_tokens
        place_in_run = (placeholders.cumsum(-1) - 1) % run  # (B, T)
        is_image = placeholders & (place_in_run < config.num_image_tokens)  # (B, T)
        is_prompt = placeholders & ~is_image  # (B, T)
        per_sample = placeholders.sum(-1) // run  # (B,) pictures
        return Streams(
            image=inputs_embeds,
            image_mask=is_image,
            text=inputs_embeds,
            text_mask=(is_prompt | ~placeholders) & visible,
            prompt_mask=is_prompt,
            is_real=per_sample > 0,
            **self._statistics_per_sample(features, per_sample),
        )

    def _statistics_per_sample(self, features, per_sample):
        """Mean statistics over the pictures of each sample, (N, ...) → (B, ...); `per_sample` (B,) counts pictures."""
        if features.image_profile is None:
            return {}
        batch = torch.arange(per_sample.shape[0], device=per_sample.device)  # (B,)
        owner = torch.repeat_interleave(batch, per_sample, output_size=features.image_profile.shape[0])  # (N,)
        count = per_sample.clamp_min(1).float()  # (B,)

        def mean(values):
            total = values.new_zeros(per_sample.shape[0], values.shape[1]).index_add(0, owner, values)  # (B, E)
            return total / count[:, None]

        names = ("image_profile", "image_content", "tag_words", "tag_scores")
        return {
            **{name: mean(features[name]) for name in names},
            "has_tags": mean(features.has_tags.float()[:, None])[:, 0] > 0,  # (B,)
        }

    def prompt_mask_for(self, labels, prompt_mask, has_features):
        """
        What a router of scope `"prompt"` may see, (B, T) bool, or `None` for everything.

        In training that is what stands before the first supervised label: pooling over the answer would leak it into
        the prompt.
        """
        if prompt_mask is not None or not has_features or self.config.router_scope == "image" or self.router is None:
            return prompt_mask
        if self.config.is_encoder_decoder:
            return None
        if labels is not None:
            return (labels != -100).cumsum(-1) == 0  # (B, T)
        if self.training:
            raise ValueError(
                "router_scope='prompt' cannot tell the prompt from the answer in training without labels or "
                "prompt_mask: pass one of them, or use router_scope='image' (TRL's trainers need that)."
            )
        return None


def last_positions(mask, length):
    """
    (B, T') → (B, length). A longer mask also covers what the cache holds already; a shorter one ends with the prompt.
    """
    return nn.functional.pad(mask[:, -length:], (0, max(0, length - mask.shape[1])))
