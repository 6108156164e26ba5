"""What the reliability router knows of a picture's tags: their words and their scores, as fixed-size vectors.

Both must be stationary, or running statistics would chase what training moves. The tag encoder may be fine-tuned, so
the words enter by their token ids through fixed pseudo-random directions (random indexing; Kanerva et al., 2000), which
need no table and no state.
"""

import torch

WORD_DIRECTIONS = 64
NUM_SCORE_STATISTICS = 5
PRIME = 1_000_003


def word_directions(ids):
    """Pseudo-random coordinates in [-1, 1) of integer ids: [...] → [..., WORD_DIRECTIONS]."""
    column = torch.arange(1, WORD_DIRECTIONS + 1, device=ids.device)  # (R,)
    # Two rounds of a quadratic map modulo a prime: neighbouring ids end up far apart.
    mixed = (ids[..., None] % PRIME * (7919 * column) + 104729 * column) % PRIME  # (..., R)
    mixed = (mixed * mixed + 31 * column) % PRIME  # (..., R)
    return mixed.float() / (PRIME / 2) - 1


def tag_words(tag_input_ids, tag_mask, tag_scores):
    """Score-weighted mean of the tags' word directions: ids, mask, scores [N, L] → [N, WORD_DIRECTIONS] in float32."""
    weight = tag_mask.float() * tag_scores.float()  # (N, L)
    total = weight.sum(-1, keepdim=True).clamp_min(1e-4)  # (N, 1)
    # A sum and not a matrix product, which mixed-precision training would round to bfloat16.
    return (weight[..., None] * word_directions(tag_input_ids)).sum(1) / total  # (N, R)


def question_words(question_input_ids, question_mask):
    """Mean word direction of a question: ids, mask [N, Lq] → [N, WORD_DIRECTIONS] in float32."""
    weight = question_mask.float()  # (N, Lq)
    total = weight.sum(-1, keepdim=True).clamp_min(1.0)  # (N, 1)
    return (weight[..., None] * word_directions(question_input_ids)).sum(1) / total  # (N, R)


def score_statistics(tag_mask, tag_scores):
    """Mean, least, greatest and spread of the scores, and log number of tokens: [N, L], [N, L] → [N, 5] in float32."""
    mask, scores = tag_mask.float(), tag_scores.float()  # (N, L)
    count = mask.sum(-1).clamp_min(1.0)  # (N,)
    mean = (scores * mask).sum(-1) / count  # (N,)
    least = torch.where(tag_mask, scores, 1.0).amin(-1)  # (N,)
    greatest = (scores * mask).amax(-1)  # (N,)
    spread = ((scores - mean[:, None]).square() * mask).sum(-1).div(count).sqrt()  # (N,)
    return torch.stack([mean, least, greatest, spread, count.log()], dim=-1)
