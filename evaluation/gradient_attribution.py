"""Integrated gradients over image tokens: how much each of them adds to the log-probability of an answer.

Sundararajan et al., "Axiomatic Attribution for Deep Networks" (ICML 2017, section 3): the path runs from a baseline
token in every place to the tokens that are there. The attributions of all tokens add up to the difference that they
make together (completeness), but for the error of the sum that stands for the integral.
"""

from collections.abc import Sequence

import torch

from poise.evaluation.prompted_answers import answer_log_probabilities
from poise.evaluation.visual_prompts import VisualPrompts


def integrated_gradients(
    prompts: VisualPrompts,
    answers: Sequence[Sequence[int]],
    baseline: torch.Tensor | None = None,
    counted_from: Sequence[int] | None = None,
    steps: int = 16,
) -> torch.Tensor:
    """
    Attribution (B, P) of each image token, in nats.

    Args:
        prompts: B prompts.
        answers: token ids of the answer to each.
        baseline (D,) (*optional*): the token that stands for "nothing here"; zeros by default.
        counted_from (*optional*): of each answer the first token that counts, see [`answer_log_probabilities`].
        steps (`int`, *optional*, defaults to 16): points of the path, at the middles of equal parts.

    Raises:
        ValueError: fewer than one step, or an empty answer.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be 1 or more; 16 to 64 are usual.")
    tokens = prompts.image_tokens()  # (B, P, D)
    start = torch.zeros_like(tokens) if baseline is None else baseline.to(tokens).expand_as(tokens)  # (B, P, D)
    total = torch.zeros_like(tokens, dtype=torch.float32)  # (B, P, D)
    for step in range(steps):
        with torch.enable_grad():
            point = torch.lerp(start, tokens, (step + 0.5) / steps).detach().requires_grad_()  # (B, P, D)
            value = answer_log_probabilities(prompts, answers, prompts.with_image_tokens(point), counted_from)  # (B,)
            total += torch.autograd.grad(value.sum(), point)[0].float()  # (B, P, D)
    return ((tokens - start).float() * total / steps).sum(-1)
