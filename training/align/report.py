"""What `poise align` says about its result: retrieval, zero-shot tags, calibration."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...evaluation.calibration import (
    average_calibration_error,
    draw_reliability,
    expected_calibration_error,
    fit_temperature,
    retrieval_recall,
    tagging_scores,
    truth_table,
)
from ...modeling import PoiseDualEncoder
from ...modeling.dual_encoder_head import DualEncoderHead
from ...processing.taggers import DualEncoderTagger, ZeroShotTagger, uncalibrated_scores
from .caption_pairs import CaptionPairs
from .pair_features import PairFeatures

logger = logging.getLogger(__name__)

_PART = 256


@torch.no_grad()
def quick_retrieval(head: DualEncoderHead, features: PairFeatures) -> dict[str, float]:
    """Recall of held-out pairs from cached features, while the head trains."""
    was_training = head.training
    head.eval()
    device = head.logit_scale.device

    def embedded(cache, embed) -> torch.Tensor:
        parts = []
        for start in range(0, len(cache), _PART):
            batch = cache.batch(range(start, min(start + _PART, len(cache))))
            parts.append(embed(**{k: v.to(device, torch.float32) for k, v in batch.items()}))
        return torch.cat(parts)

    images, texts = embedded(features.images, head.embed_images), embedded(features.texts, head.embed_texts)
    head.train(was_training)
    texts_of: list[list[int]] = [[] for _ in range(len(features.images))]
    for image, text in features.pairs:
        texts_of[image].append(text)
    scores = retrieval_recall((images @ texts.T).cpu().numpy(), texts_of)
    return {name: value for name, value in scores.items() if "recall" in name}


def _images(pairs: CaptionPairs, rows: Sequence[int]):
    """Held-out images in parts, so that a large set need not fit into memory."""
    for start in range(0, len(rows), _PART):
        yield pairs.images(list(rows[start : start + _PART]))


def calibrate(tagger: DualEncoderTagger, pairs: CaptionPairs, rows: Sequence[int]) -> dict[str, float]:
    """
    Fit the tagger's temperature and bias on these images, whose tags are known; returns both.

    Raises:
        ValueError: nothing is known of the images, or no name of the vocabulary is among their tags.
    """
    present = pairs.names_present()
    truth = truth_table([present[row] for row in rows], tagger.vocabulary)  # (N, C)
    known = truth.any(axis=1)  # (N,)
    if not known.any():
        raise ValueError(
            "tagger.vocabulary: none of its names is true of an evaluation image, so scores cannot be calibrated: "
            'give the records tags or metadata["labels"] in the words of the vocabulary'
        )
    similarities = torch.cat([tagger.similarities(part).cpu() for part in _images(pairs, rows)]).numpy()  # (N, C)
    tagger.temperature, tagger.bias = fit_temperature(similarities[known], truth[known])
    return {"temperature": tagger.temperature, "bias": tagger.bias, "pictures": int(known.sum())}


def measure(
    model: PoiseDualEncoder,
    processor: Any,
    tagger: DualEncoderTagger | None,
    pairs: CaptionPairs,
    rows: Sequence[int],
    plot: Path,
) -> dict[str, Any]:
    """Retrieval, and with a tagger zero-shot tags before and after calibration, on images it was not fitted to."""
    reader = tagger or ZeroShotTagger(model, processor, ["anything"])
    captions = [pairs.captions[row] for row in rows]
    texts = list(dict.fromkeys(caption for own in captions for caption in own))
    number = {text: place for place, text in enumerate(texts)}
    images = torch.cat([reader.embed_images(part) for part in _images(pairs, rows)])  # (N, D)
    similarity = (images @ reader.embed_texts(texts).T).cpu().numpy()  # (N, M)
    metrics: dict[str, Any] = {
        "retrieval": {
            "pictures": len(rows),
            "texts": len(texts),
            **retrieval_recall(similarity, [sorted({number[text] for text in own}) for own in captions]),
        }
    }
    if tagger is None:
        return metrics
    present = pairs.names_present()
    truth = truth_table([present[row] for row in rows], tagger.vocabulary)  # (N, C)
    if not truth.any():
        return metrics
    cosines = (images @ tagger.tag_embeds().T).cpu()  # (N, C)
    before, after = uncalibrated_scores(model, cosines).numpy(), tagger.scores_of(cosines).numpy()  # (N, C) each
    known = truth.any(axis=1)  # (N,)
    metrics["tags"] = {
        "vocabulary": len(tagger.vocabulary),
        "pictures": int(known.sum()),
        **tagging_scores(after, truth),
    }
    for name, scores in (("before", before), ("after", after)):
        metrics["calibration_error_" + name] = {
            "expected": expected_calibration_error(scores[known], truth[known]),
            "average": average_calibration_error(scores[known], truth[known]),
        }
    draw_reliability(
        {"before calibration": (before[known], truth[known]), "after": (after[known], truth[known])}, plot,
        title="Scores of tags on held-out images",
    )  # fmt: skip
    logger.info("reliability: %s", plot)
    return metrics
