"""Evidence: a fixed summary of each stream's *frozen* side, for the reliability router to judge.

It must be stationary: a summary of anything that training moves would drift away from its own statistics. Image
evidence comes from the frozen tower. The tag encoder may be fine-tuned, so tag evidence comes from the tags' token ids
through fixed pseudo-random directions (random indexing; Kanerva et al., 2000), which need no table and no state.
"""

import torch

TAG_DIRECTIONS = 64
NUM_SCORE_STATISTICS = 5
TAG_EVIDENCE_DIM = 2 * TAG_DIRECTIONS + NUM_SCORE_STATISTICS
PRIME = 1_000_003


def image_evidence(vision_features):
    """
    Mean and log variance over the tokens of the deepest selected layer, [N, S, P, Dv] → [N, 2·Dv] in float32.

    The variance sees what the mean cannot: noise and blur keep the average and change the spread.
    """
    deep = vision_features[:, -1].detach().float()  # (N, P, Dv)
    return torch.cat([deep.mean(1), deep.var(1, unbiased=False).clamp_min(1e-8).log()], dim=-1)  # (N, 2Dv)


def hashed_directions(ids):
    """Pseudo-random coordinates in [-1, 1) of integer ids: [...] → [..., TAG_DIRECTIONS]."""
    column = torch.arange(1, TAG_DIRECTIONS + 1, device=ids.device)  # (R,)
    # Two rounds of a quadratic map modulo a prime: neighbouring ids end up far apart.
    mixed = (ids[..., None] % PRIME * (7919 * column) + 104729 * column) % PRIME  # (..., R)
    mixed = (mixed * mixed + 31 * column) % PRIME  # (..., R)
    return mixed.float() / (PRIME / 2) - 1


def tag_evidence(tag_input_ids, tag_mask, tag_scores):
    """
    What the tags say and how surely, from token ids [N, L], mask [N, L] and scores [N, L] → [N, TAG_EVIDENCE_DIM].

    Score-weighted means of token and token-pair directions (pairs keep "red square" apart from "square, red"), then
    mean, least, greatest and spread of the scores and the log number of tokens.
    """
    mask = tag_mask.float()  # (N, L)
    weight = mask * tag_scores.float()  # (N, L)
    total = weight.sum(-1, keepdim=True).clamp_min(1e-4)  # (N, 1)
    unigrams = hashed_directions(tag_input_ids)  # (N, L, R)
    # The last tag is followed by nothing, however wide the batch's padding is.
    following = torch.nn.functional.pad((tag_input_ids * tag_mask)[:, 1:], (0, 1))  # (N, L)
    bigrams = hashed_directions(tag_input_ids * 31337 + following + 1)  # (N, L, R)
    words = (weight[:, None] @ torch.cat([unigrams, bigrams], dim=-1))[:, 0] / total  # (N, 2R)
    count = mask.sum(-1).clamp_min(1.0)  # (N,)
    mean = weight.sum(-1) / count  # (N,)
    least = torch.where(tag_mask.bool(), tag_scores.float(), 1.0).amin(-1)  # (N,)
    greatest = weight.amax(-1)  # (N,)
    spread = ((tag_scores.float() - mean[:, None]).square() * mask).sum(-1).div(count).sqrt()  # (N,)
    return torch.cat([words, torch.stack([mean, least, greatest, spread, count.log()], dim=-1)], dim=-1)


def mean_confidence(tag_mask, tag_scores):
    """Mean score over a picture's tag tokens, [N, L] → [N]."""
    mask = tag_mask.float()  # (N, L)
    return (tag_scores.float() * mask).sum(-1) / mask.sum(-1).clamp_min(1.0)  # (N,)
