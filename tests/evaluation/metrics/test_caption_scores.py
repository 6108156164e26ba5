"""BLEU, ROUGE-L and CIDEr-D against stated values, against plain re-computation, and at the edges."""

import json
import math
from collections import Counter
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest

from poise.evaluation.metrics.caption_scores import (
    bleu_from_statistics,
    bleu_statistics,
    cider_d_scores,
    rouge_l_scores,
)

HYPOTHESES = ["a cat sleeps on a red mat", "two dogs run", "a man on a very tall horse near the sea", "dogs"]
REFERENCES = [
    ["a cat lies on a mat", "the cat sleeps on the red mat", "a red mat with a cat on it"],
    ["two brown dogs run on the grass", "dogs run and run"],
    ["a man rides a horse", "the man sits on a tall horse", "a rider by the sea", "a horse near water"],
    ["three dogs sit"],
]


@pytest.fixture
def corpus():
    return [text.split() for text in HYPOTHESES], [[text.split() for text in texts] for texts in REFERENCES]


def grams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def plain_bleu(hypotheses, references, order):
    """Corpus BLEU in fractions, as the paper defines it."""
    precisions = []
    for n in range(1, order + 1):
        matches = guesses = 0
        for hypothesis, captions in zip(hypotheses, references, strict=True):
            for gram, count in Counter(grams(hypothesis, n)).items():
                matches += min(count, max(grams(caption, n).count(gram) for caption in captions))
                guesses += count
        precisions.append(Fraction(matches, guesses))
    length = sum(map(len, hypotheses))
    closest = 0
    for hypothesis, captions in zip(hypotheses, references, strict=True):
        closest += min((abs(len(caption) - len(hypothesis)), len(caption)) for caption in captions)[1]
    brevity = 1.0 if length >= closest else math.exp(1 - closest / length)
    return brevity * math.prod(map(float, precisions)) ** (1 / order)


def plain_cider_d(hypotheses, references, sigma=6.0):
    """CIDEr-D over dense tf-idf vectors of one vocabulary."""
    images = len(references)
    scores = np.zeros(images)
    for n in range(1, 5):
        documents = [{gram for caption in captions for gram in grams(caption, n)} for captions in references]
        vocabulary = sorted(set().union(*documents, *(grams(hypothesis, n) for hypothesis in hypotheses)))
        frequency = np.array([max(1, sum(gram in document for document in documents)) for gram in vocabulary])
        idf = np.log(images / frequency)

        def vector(words, n=n, vocabulary=vocabulary, idf=idf):
            return np.array([grams(words, n).count(gram) for gram in vocabulary]) * idf

        for i, (hypothesis, captions) in enumerate(zip(hypotheses, references, strict=True)):
            mine = vector(hypothesis)
            for caption in captions:
                other = vector(caption)
                norm = np.linalg.norm(mine) * np.linalg.norm(other)
                cosine = np.minimum(mine, other) @ other / norm if norm else 0.0
                gap = max(len(hypothesis) - 1, 0) - max(len(caption) - 1, 0)
                scores[i] += 10 / 4 / len(captions) * cosine * math.exp(-(gap**2) / (2 * sigma**2))
    return scores


@pytest.mark.parametrize("order", [1, 2, 3])
def test_bleu_is_the_papers(corpus, order):
    scores = bleu_from_statistics(bleu_statistics(*corpus).sum(axis=0))
    assert scores[order - 1] == pytest.approx(plain_bleu(*corpus, order), abs=1e-8)


def test_bleu_of_identical_captions_is_one():
    words = "a b c d e".split()
    assert bleu_from_statistics(bleu_statistics([words], [[words]])[0]) == pytest.approx(np.ones(4), abs=1e-6)


def test_bleu_of_many_corpora_at_once(corpus):
    rows = bleu_statistics(*corpus)  # (N, 10)
    together = bleu_from_statistics(np.stack([rows[:2].sum(0), rows.sum(0)]))
    assert together[0] == pytest.approx(bleu_from_statistics(rows[:2].sum(0)))
    assert together[1] == pytest.approx(bleu_from_statistics(rows.sum(0)))


def test_rouge_l_by_hand():
    # LCS with "a b c d": 3 of 4 words of both; with "b d e": 2 of 4 and 2 of 3. The best precision and recall are 3/4.
    score = rouge_l_scores(["a b x d".split()], [["a b c d".split(), "b d e".split()]])
    assert score[0] == pytest.approx(0.75)
    # Precision 1, recall 1/2: (1 + 1.44) * 0.5 / (0.5 + 1.44) = 0.6289.
    assert rouge_l_scores([["a"]], [[["a", "b"]]])[0] == pytest.approx(2.44 * 0.5 / 1.94)


def test_cider_d_is_cosine_of_tf_idf(corpus):
    assert cider_d_scores(*corpus) == pytest.approx(plain_cider_d(*corpus), abs=1e-12)


def test_cider_d_of_one_image_is_zero():
    assert cider_d_scores([["a", "b"]], [[["a", "b"]]]).tolist() == [0.0]


def test_cider_d_with_another_corpus_idf(corpus):
    hypotheses, references = corpus
    alone = cider_d_scores(hypotheses[:1], references[:1], idf_references=references)
    assert alone == pytest.approx(cider_d_scores(*corpus)[:1])


def test_empty_hypotheses_score_zero(corpus):
    _, references = corpus
    empty = [[] for _ in references]
    assert bleu_from_statistics(bleu_statistics(empty, references).sum(axis=0)).max() < 1e-5
    assert rouge_l_scores(empty, references).tolist() == [0.0] * 4
    assert cider_d_scores(empty, references).tolist() == [0.0] * 4


@pytest.mark.parametrize("score", [bleu_statistics, rouge_l_scores, cider_d_scores])
def test_bad_input(score):
    with pytest.raises(ValueError, match="hypotheses is empty"):
        score([], [])
    with pytest.raises(ValueError, match="2 hypotheses but 1 lists"):
        score([["a"], ["b"]], [[["a"]]])
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        score([["a"], ["b"]], [[["a"]], []])


def scores_of(hypotheses, references):
    words = [text.split() for text in hypotheses], [[text.split() for text in texts] for texts in references]
    bleu = bleu_from_statistics(bleu_statistics(*words).sum(axis=0))
    means = {"ROUGE_L": rouge_l_scores(*words).mean(), "CIDEr": cider_d_scores(*words).mean()}
    return {f"Bleu_{n}": bleu[n - 1] for n in range(1, 5)} | means


def test_stated_values_of_nlg_eval(shared_folder):
    folder = shared_folder / "metric_reference" / "nlg_eval_example"
    lines = {name: (folder / f"{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2")}
    stated = json.loads((folder / "expected.json").read_text())
    got = scores_of(lines["hyp"], list(zip(lines["ref1"], lines["ref2"], strict=True)))
    for name, value in got.items():
        assert value == pytest.approx(stated["corpus"][name], abs=1e-5), name
    assert got["CIDEr"] == pytest.approx(1.242192, abs=1e-6)
    for case in stated["single"]:
        for name, value in scores_of([case["hyp"]], [case["refs"]]).items():
            if name in case:
                assert value == pytest.approx(case[name], abs=1e-5), (case["hyp"], name)


def test_regression_values_of_the_dev_captions(shared_folder):
    reference = json.loads(
        (shared_folder / "metric_reference" / "caption_pretokenized" / "dev_leave_one_out.json").read_text()
    )
    images = list(reference["hypotheses"])
    hypotheses = [reference["hypotheses"][image] for image in images]
    references = [reference["references"][image] for image in images]
    for name, value in scores_of(hypotheses, references).items():
        assert value == pytest.approx(reference["expected"][name], abs=1e-9), name
    per_image = cider_d_scores(
        [text.split() for text in hypotheses], [[text.split() for text in texts] for texts in references]
    )
    assert per_image == pytest.approx([reference["per_image_cider"][image] for image in images], abs=1e-9)


# Printed by pycocoevalcap 1.2 for HYPOTHESES and REFERENCES; computed anew below where it is installed.
PUBLISHED = {
    "cider": [3.30358760212695, 2.3402014284845007, 1.2115031685367734, 0.7882995574223046],
    "rouge": [0.7800511508951408, 0.6288659793814433, 0.6421052631578947, 0.45864661654135336],
    "bleu": [0.9523809522902494, 0.8199200616081068, 0.45794676468409057, 5.435795065391112e-05],
}


def test_values_of_the_published_scorers(corpus):
    assert cider_d_scores(*corpus) == pytest.approx(PUBLISHED["cider"], rel=1e-9)
    assert rouge_l_scores(*corpus) == pytest.approx(PUBLISHED["rouge"], rel=1e-9)
    assert bleu_from_statistics(bleu_statistics(*corpus).sum(axis=0)) == pytest.approx(PUBLISHED["bleu"], rel=1e-9)


def test_agrees_with_pycocoevalcap(corpus):
    if find_spec("pycocoevalcap") is None:
        pytest.skip("the reference scorers are not installed (pip install pycocoevalcap)")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    given = dict(enumerate(REFERENCES)), {i: [text] for i, text in enumerate(HYPOTHESES)}
    assert cider_d_scores(*corpus) == pytest.approx(Cider().compute_score(*given)[1], abs=1e-12)
    assert rouge_l_scores(*corpus) == pytest.approx(Rouge().compute_score(*given)[1], abs=1e-12)
    bleu = Bleu(4).compute_score(*given, verbose=0)[0]
    assert bleu_from_statistics(bleu_statistics(*corpus).sum(axis=0)) == pytest.approx(bleu, abs=1e-12)


def test_of_two_references_equally_close_in_length_bleu_takes_the_shorter():
    words = "a b c d e f".split()
    rows = bleu_statistics([words[:4]] * 2, [[words[:6], words[:2]], [words[:2], words[:6]]])
    assert rows[:, -2].tolist() == [4, 4] and rows[:, -1].tolist() == [2, 2]
    assert bleu_statistics([words[:4]], [[words, words[:5], words[:2]]])[0, -1] == 5  # the closest, not the shortest
