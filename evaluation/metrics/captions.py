"""Caption metrics for `evaluate`: BLEU-1..4, ROUGE-L and CIDEr-D as the COCO caption evaluation computes them.

`evaluate.load` copies this file and the files it imports directly, so nothing below imports a third one.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .caption_scores import bleu_from_statistics, bleu_statistics, cider_d_scores, rouge_l_scores
from .ptb_tokenizer import ptb_tokenize

DESCRIPTION = """BLEU-1..4, ROUGE-L and CIDEr-D of captions, on PTB-style tokens, without Java.
The COCO evaluation calls this CIDEr-D "CIDEr"; published figures are it times 100."""
CITATION = """Vedantam et al., CIDEr, CVPR 2015; Papineni et al., BLEU, ACL 2002; Lin, ROUGE, 2004;
Chen et al., Microsoft COCO Captions, arXiv 1504.00325."""
INPUTS = """
Args:
    predictions (`list[str]`): one caption per image.
    references (`list[list[str]]`): the image's captions, one or more.
    tokenized (`bool`, *optional*, defaults to `False`): the text is tokenized already; split it on blanks only.
    idf_references (`list[list[str]]`, *optional*): captions per image of another corpus, for CIDEr-D's idf.
    per_sample (`bool`, *optional*, defaults to `False`): also return `cider_d_per_sample`, `rouge_l_per_sample`.

Returns:
    `dict[str, float]`: bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider_d.
"""


def tokenize_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenized: bool = False
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Token lists of captions and of their references."""
    split = str.split if tokenized else ptb_tokenize
    return [split(text) for text in predictions], [[split(text) for text in captions] for captions in references]


class CaptionMetric(evaluate.Metric):
    """BLEU-1..4, ROUGE-L and CIDEr-D; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        tokenized: bool = False,
        idf_references: list[list[str]] | None = None,
        per_sample: bool = False,
    ) -> dict[str, float | list[float]]:
        hypotheses, captions = tokenize_captions(predictions, references, tokenized)
        idf_captions = None if idf_references is None else tokenize_captions([], idf_references, tokenized)[1]
        bleu = bleu_from_statistics(bleu_statistics(hypotheses, captions).sum(axis=0))  # (4,)
        rouge_l = rouge_l_scores(hypotheses, captions)
        cider_d = cider_d_scores(hypotheses, captions, idf_captions)
        result: dict[str, float | list[float]] = {f"bleu_{order}": float(bleu[order - 1]) for order in range(1, 5)}
        result |= {"rouge_l": float(np.mean(rouge_l)), "cider_d": float(np.mean(cider_d))}
        if per_sample:
            result |= {"cider_d_per_sample": cider_d.tolist(), "rouge_l_per_sample": rouge_l.tolist()}
        return result
