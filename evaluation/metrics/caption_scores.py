"""BLEU, ROUGE-L and CIDEr-D on tokenized captions, with the conventions of the COCO caption evaluation.

Every function takes `hypotheses` (N token lists) and `references` (N non-empty lists of token lists).
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

MAX_ORDER = 4

Tokens = Sequence[str]
Corpus = Sequence[Sequence[Tokens]]


def _ngrams(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def _check(hypotheses: Sequence[Tokens], references: Corpus) -> None:
    if len(hypotheses) == 0:
        raise ValueError("hypotheses is empty: give at least one caption to score.")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses but {len(references)} lists of references: give one list per hypothesis."
        )
    empty = [i for i, captions in enumerate(references) if len(captions) == 0]
    if empty:
        raise ValueError(f"references[{empty[0]}] is empty: every hypothesis needs at least one reference caption.")


def bleu_statistics(hypotheses: Sequence[Tokens], references: Corpus) -> np.ndarray:
    """What BLEU adds up over a corpus, per caption.

    Returns:
        `np.ndarray` (N, 10): clipped n-gram matches for n = 1..4, n-grams of the hypothesis for n = 1..4, its length,
        the length of the closest reference (the shorter one of two equally close).
    """
    _check(hypotheses, references)
    rows = np.zeros((len(hypotheses), 2 * MAX_ORDER + 2))  # (N, 10)
    for row, hypothesis, captions in zip(rows, hypotheses, references, strict=True):
        length = len(hypothesis)
        for order in range(1, MAX_ORDER + 1):
            allowed: Counter[tuple[str, ...]] = Counter()
            for caption in captions:
                allowed |= _ngrams(caption, order)
            row[order - 1] = (_ngrams(hypothesis, order) & allowed).total()
            row[MAX_ORDER + order - 1] = max(0, length - order + 1)
        row[-2] = length
        row[-1] = min((abs(len(caption) - length), len(caption)) for caption in captions)[1]
    return rows


def bleu_from_statistics(totals: np.ndarray) -> np.ndarray:
    """BLEU-1..4 of corpora from their summed `bleu_statistics`.

    The tiny constants are the reference implementation's: they make the score of a corpus without a match, or without
    words, zero instead of undefined.

    Args:
        totals (`np.ndarray` (..., 10)): sums over captions; leading axes are separate corpora (bootstrap resamples).

    Returns:
        `np.ndarray` (..., 4).

    Source: K. Papineni et al., "BLEU", ACL 2002, section 2.3.
    """
    matches, guesses = totals[..., :MAX_ORDER], totals[..., MAX_ORDER : 2 * MAX_ORDER]  # (..., 4)
    precisions = (matches + 1e-15) / (guesses + 1e-9)
    orders = np.arange(1, MAX_ORDER + 1)
    scores = np.cumprod(precisions, axis=-1) ** (1.0 / orders)
    ratio = (totals[..., -2] + 1e-15) / (totals[..., -1] + 1e-9)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(np.minimum(1 - 1 / ratio, 0.0)), 1.0)
    return scores * brevity[..., None]


def _longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    lengths = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if token == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]


def rouge_l_scores(hypotheses: Sequence[Tokens], references: Corpus, beta: float = 1.2) -> np.ndarray:
    """ROUGE-L per caption: F-measure of the best precision and the best recall over the references.

    An empty hypothesis scores 0.

    Returns:
        `np.ndarray` (N,).

    Source: C.-Y. Lin, "ROUGE", 2004, section 3.1; beta = 1.2 and the two separate maxima as in the COCO evaluation.
    """
    _check(hypotheses, references)
    scores = np.zeros(len(hypotheses))
    for i, (hypothesis, captions) in enumerate(zip(hypotheses, references, strict=True)):
        common = [_longest_common_subsequence(caption, hypothesis) for caption in captions]
        if not hypothesis or not any(common):
            continue
        precision = max(common) / len(hypothesis)
        recall = max(length / len(caption) for length, caption in zip(common, captions, strict=True) if caption)
        scores[i] = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return scores


def _document_frequency(references: Corpus) -> Counter[tuple[str, ...]]:
    """In how many images' references each n-gram occurs."""
    frequency: Counter[tuple[str, ...]] = Counter()
    for captions in references:
        seen: set[tuple[str, ...]] = set()
        for caption in captions:
            for order in range(1, MAX_ORDER + 1):
                seen.update(_ngrams(caption, order))
        frequency.update(seen)
    return frequency


def cider_d_scores(
    hypotheses: Sequence[Tokens],
    references: Corpus,
    idf_references: Corpus | None = None,
    sigma: float = 6.0,
) -> np.ndarray:
    """CIDEr-D per caption, the variant that the COCO evaluation prints as "CIDEr".

    D stands for the two changes against gaming: counts are clipped to the reference's, and a Gaussian penalty on the
    difference of lengths (in bigrams, as the reference counts them). Without stemming; times 10.

    The idf comes from the references of the images being scored. A score on a subset is therefore not comparable with
    one on the whole set, and with a single image every idf, and so the score, is 0. `idf_references` takes the idf from
    another corpus instead.

    Returns:
        `np.ndarray` (N,): about 0 to 10; published figures are the mean times 100.

    Source: R. Vedantam et al., "CIDEr", CVPR 2015, sections 4 and 5.2 (CIDEr-D).
    """
    _check(hypotheses, references)
    corpus = references if idf_references is None else idf_references
    if len(corpus) == 0:
        raise ValueError("idf_references is empty: give the references of at least two images, or leave it out.")
    frequency = _document_frequency(corpus)
    log_images = math.log(len(corpus))

    def weigh(tokens: Tokens) -> tuple[list[dict[tuple[str, ...], float]], list[float]]:
        vectors, norms = [], []
        for order in range(1, MAX_ORDER + 1):
            counts = _ngrams(tokens, order)
            vector = {
                gram: count * (log_images - math.log(max(1.0, frequency[gram]))) for gram, count in counts.items()
            }
            vectors.append(vector)
            norms.append(math.sqrt(sum(weight**2 for weight in vector.values())))
        return vectors, norms

    scores = np.zeros(len(hypotheses))
    for i, (hypothesis, captions) in enumerate(zip(hypotheses, references, strict=True)):
        vectors, norms = weigh(hypothesis)
        for caption in captions:
            other_vectors, other_norms = weigh(caption)
            similarity = 0.0
            for vector, norm, other, other_norm in zip(vectors, norms, other_vectors, other_norms, strict=True):
                if norm and other_norm:
                    shared = vector.keys() & other.keys()
                    product = sum(min(vector[gram], other[gram]) * other[gram] for gram in shared)
                    similarity += product / (norm * other_norm)
            bigrams_apart = max(0, len(hypothesis) - 1) - max(0, len(caption) - 1)
            similarity *= math.exp(-(bigrams_apart**2) / (2 * sigma**2))
            scores[i] += 10.0 * similarity / (MAX_ORDER * len(captions))
    return scores
