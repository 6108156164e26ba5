"""What the router did: the weight it gave to each stream, picture by picture."""

from collections.abc import Sequence
from typing import Any

import torch

from poise.processing import GenerationCollator


@torch.no_grad()
def router_weights(model: Any, processor: Any, records: Sequence[Any], batch_size: int = 64) -> torch.Tensor | None:
    """
    Weights of the image stream and of the text stream for every record, (n, 2), or `None` without a router.

    Args:
        model: a Poise model in evaluation mode.
        processor ([`PoiseProcessor`]): made for it.
        records (`Sequence`): task records with pictures.
        batch_size (`int`, *optional*, defaults to 64): records per forward pass.
    """
    collator = GenerationCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)
    found = []
    for start in range(0, len(records), batch_size):
        inputs, _ = collator([records[index] for index in range(start, min(start + batch_size, len(records)))])
        inputs = inputs.to(model.device)
        if model.config.is_encoder_decoder:
            begin = model.config.text_config.decoder_start_token_id
            inputs["decoder_input_ids"] = torch.full(
                (len(inputs["input_ids"]), 1), begin, device=model.device
            )  # (B, 1)
        weights = model(**inputs, logits_to_keep=1).router_weights  # (B, 2)
        if weights is None:
            return None
        found.append(weights.float().cpu())
    return torch.cat(found)  # (n, 2)
