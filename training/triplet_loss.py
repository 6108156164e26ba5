"""Triplet margin loss over a batch: whose caption is the negative of whose tags.

An anchor should be nearer to its positive than to any negative, by a margin: max(0, d(a, p) - d(a, n) + margin), with
the p-norm as distance (Schroff et al., FaceNet, CVPR 2015, section 3.1; `torch.nn.TripletMarginLoss`). The negatives
are captions of other images of the same batch, so every caption is encoded once.
"""

import torch
from torch.nn import functional as F

NEGATIVES = ("random", "semi_hard")


def choose_negatives(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    captions: torch.Tensor,
    allowed: torch.Tensor,
    kind: str,
    margin: float,
    p: float = 2.0,
) -> torch.Tensor:
    """
    For each of B anchors the row of its negative among M captions, (B,) int64.

    `random` draws evenly. `semi_hard` takes the nearest caption that is farther than the positive but within the margin
    (FaceNet, equation 4); where there is none, the farthest one: that is the mildest where all are nearer than the
    positive, and without loss where all are beyond the margin.

    Args:
        anchors, positives (B, D); captions (M, D).
        allowed (B, M) bool: captions of other images.

    Raises:
        ValueError: an anchor has no other image's caption beside it, or `kind` is unknown.
    """
    if not allowed.any(dim=-1).all():
        raise ValueError(
            f"a batch of {len(anchors)} holds no caption of another image: use a larger batch, and drop the last one "
            "(training.dataloader_drop_last: true)"
        )
    if kind == "random":
        return torch.multinomial(allowed.float(), 1)[:, 0]  # (B,)
    if kind != "semi_hard":
        raise ValueError(f"negatives={kind!r} is not known: choose one of {', '.join(NEGATIVES)}")
    with torch.no_grad():
        distance = torch.cdist(anchors, captions, p=p)  # (B, M)
        to_positive = F.pairwise_distance(anchors, positives, p=p)[:, None]  # (B, 1)
        semi_hard = allowed & (distance > to_positive) & (distance < to_positive + margin)  # (B, M)
        nearest = distance.masked_fill(~semi_hard, torch.inf).argmin(dim=-1)  # (B,)
        farthest = distance.masked_fill(~allowed, -torch.inf).argmax(dim=-1)  # (B,)
        return torch.where(semi_hard.any(dim=-1), nearest, farthest)  # (B,)


def triplet_margin_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    captions: torch.Tensor,
    allowed: torch.Tensor,
    negatives: str = "random",
    margin: float = 1.0,
    p: float = 2.0,
) -> torch.Tensor:
    """Mean loss of a batch, one negative for each anchor; arguments as [`choose_negatives`]."""
    chosen = choose_negatives(anchors, positives, captions, allowed, negatives, margin, p)  # (B,)
    return F.triplet_margin_loss(anchors, positives, captions[chosen], margin=margin, p=p)
