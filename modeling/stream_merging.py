"""Where the streams meet the text: image and soft-prompt tokens fill the placeholders."""

import torch
from torch import nn
from transformers.utils import torch_compilable_check


class StreamMerging(nn.Module):
    """
    The part of `PoiseModel` that makes one sequence of embeddings out of text, image tokens and soft prompts.

    Needs `config` and `get_input_embeddings` of the class that it is mixed into.
    """

    def get_placeholder_mask(self, input_ids, inputs_embeds, num_features):
        """
        Which positions are placeholders, (B, T) bool.

        Raises:
            ValueError: their number is not that of the features, because text was cut through an image's run of
                placeholders or an image is missing.
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
                "tokens: each image needs one run of them as PoiseProcessor writes it; do not cut through an image, "
                "and give every image's pixel_values."
            ),
        )
        return mask

    def embed_streams(self, input_ids=None, inputs_embeds=None, features=None):
        """
        Embeddings that the language model reads, (B, T, D): of `input_ids` (B, T), or `inputs_embeds` (B, T, D), with
        the tokens of `features` ([`PoiseImageFeatures`], *optional*) in the placeholders, in reading order.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, or placeholders that nothing fills.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds: give exactly one of them.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # (B, T, D)
        if features is None:
            # A single token is a decoding step, which need not be looked at: no image fits into it.
            if input_ids is not None and input_ids.shape[1] > 1:
                self.get_placeholder_mask(input_ids, inputs_embeds, 0)
            return inputs_embeds
        tokens = torch.cat(list(features.pooler_output)).to(inputs_embeds.device, inputs_embeds.dtype)  # (N(P+K), D)
        placeholders = self.get_placeholder_mask(input_ids, inputs_embeds, tokens.shape[0])  # (B, T)
        return inputs_embeds.masked_scatter(placeholders[..., None], tokens)  # (B, T, D)
