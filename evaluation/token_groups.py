"""Which positions of a prompt belong to what: the object, the rest of the picture, the soft prompt, the question."""

import torch

from poise.evaluation.visual_prompts import VisualPrompts

# `last` is where the answer is predicted from: the prompt's last position and, as the answer grows, the answer's; of an
# encoder-decoder the decoder's positions, which attend to the others across.
GROUPS = ("image_object", "image_rest", "soft_prompt", "tag_words", "question", "last")


def token_groups(prompts: VisualPrompts, object_tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Groups that do not overlap, each (B, T) bool.

    The first position, if it is text, is in none: most models park spare attention there, and blocking that says
    nothing about where information sits. `question` is the other text, the words of the chat template included.

    Args:
        object_tokens (B, P) bool: image tokens of the object.
    """
    attended = prompts.attention_mask.bool()  # (B, T)
    image = prompts.places_of(torch.ones_like(prompts.image_places, dtype=torch.bool))  # (B, T)
    soft_prompt = torch.zeros_like(attended).scatter(1, prompts.prompt_places, True)  # (B, T)
    last = torch.zeros_like(attended)
    if not prompts.parts.is_encoder_decoder:
        last[:, -1] = True  # padding is on the left
    first = attended & (attended.cumsum(-1) == 1)  # (B, T)
    chosen = prompts.places_of(object_tokens)  # (B, T)
    return {
        "image_object": chosen,
        "image_rest": image & ~chosen,
        "soft_prompt": soft_prompt,
        "tag_words": prompts.tag_words & attended,
        "question": attended & ~(image | soft_prompt | prompts.tag_words | last | first),
        "last": last,
    }
