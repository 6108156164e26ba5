"""MDI and AEI: whether the answer's attention goes to the image or to the text, against how many tokens each has.

Wu et al., "When Language Overrules" (arXiv 2508.10552). With A the attention that the tokens of a group receive from
the generated positions and |·| their number, T the text and O the other modality (the image):

    MDI = (A_T / |T|) / (A_O / |O|)                      above 1: a text token gets more than an image token
    AEI = (A_g / A) / (|g| / N) for a group g of N tokens    above 1: the group gets more than its share of tokens

Both follow the token counts: an image of many tokens that say the same has a high MDI though nothing is missed. That
is why they stand beside coalitions here, which look at the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...processing.prompts import Prompts
from ..evaluator import Evaluator, Record, Row, groups_of, image_group
from ..intervals import estimate
from ..probing.answers import answer_texts, attention_on_prompt, greedy_answers
from ..probing.parts import model_parts
from ..probing.prompt_batch import PromptBatch
from ..probing.prompt_reading import read_records
from ..probing.token_groups import token_groups

# The first position is apart: most models park spare attention there, and it alone can make the text look dominant.
GROUPS = ("image", "soft_prompt", "tag_words", "question", "first")
THIRDS = ("early", "middle", "late")


@dataclass(eq=False)
class AttentionDominance(Evaluator):
    """MDI and AEI of the positions that generate a model's own answers.

    With `w` one of `""` (all layers), `_early`, `_middle`, `_late` (thirds of the layers) and `_layer_N`, the result
    holds `mdi{w}`, `aei_image{w}`, `aei_text{w}` with `_low` and `_high`; `aei_GROUP{w}` for the groups of text: soft
    prompt, tag words, question (with the words of the chat template), the first position; `mdi_without_first{w}`, in
    which that position is no text; `tokens_GROUP`, mean numbers of tokens, and `attention_GROUP`, their share of the
    attention that stays in the prompt. Text is everything but the image tokens; the soft prompt counts to it.

    Masses and counts are summed over samples before they are divided.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 16): longest answer.
        with_tags (`bool`, *optional*, defaults to `True`): whether the model is told the tags.
        **options: of [`Evaluator`].
    """

    primary_metric = "mdi"
    greater_is_better = False
    depends_on = ("max_new_tokens", "with_tags")

    max_new_tokens: int = 16
    with_tags: bool = True

    def describe(self) -> str:
        return "attention"

    def row(self, record: Record) -> Row | None:
        if record.get("image") is None:
            return None
        return {"id": str(record["id"]), "question": Prompts().question(record), **image_group(record)}

    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        prompts = read_records(model_parts(model), processor, records, self.with_tags)
        prompts.parts.check_image_tokens("attention dominance")
        answers = greedy_answers(prompts, max_new_tokens=self.max_new_tokens)
        mass = attention_on_prompt(prompts, answers)  # (L', B, T)
        mass = mass[~mass.isnan().flatten(1).any(-1)]  # (L, B, T): layers with attention weights
        groups = prompt_groups(prompts)
        chosen = torch.stack([groups[name] for name in GROUPS]).to(mass.dtype)  # (G, B, T)
        received = torch.einsum("lbt,gbt->blg", mass, chosen)  # (B, L, G)
        counts = chosen.sum(-1).long().T  # (B, G)
        for place, (row, text) in enumerate(zip(rows, answer_texts(processor, answers), strict=True)):
            row["answer"] = text
            row["tokens"] = counts[place].tolist()
            row["attention"] = [[round(value, 7) for value in layer] for layer in received[place].tolist()]

    def score(self, rows: list[Row]) -> dict[str, float]:
        attention = np.array([row["attention"] for row in rows])  # (n, L, G)
        tokens = np.array([row["tokens"] for row in rows], dtype=float)  # (n, G)
        metrics: dict[str, float] = {}
        for name, layers in layer_ranges(attention.shape[1]).items():
            metrics |= self._indices(name, attention[:, layers].mean(1), tokens, groups_of(rows))
        shares = attention.mean(1).sum(0)  # (G,)
        for place, group in enumerate(GROUPS):
            metrics[f"tokens_{group}"] = float(tokens[:, place].mean())
            metrics[f"attention_{group}"] = float(shares[place] / shares.sum())
        return {**metrics, "layers": float(attention.shape[1]), "samples": float(len(rows))}

    def _indices(
        self, name: str, attention: np.ndarray, tokens: np.ndarray, samples: Sequence[str]
    ) -> dict[str, float]:
        """MDI and AEI of `attention` (n, G) on `tokens` (n, G)."""
        image = np.array([group == "image" for group in GROUPS])  # (G,)
        first = np.array([group == "first" for group in GROUPS])  # (G,)
        texts = {"mdi": ~image, "mdi_without_first": ~image & ~first}
        metrics: dict[str, float] = {}
        for key, text in texts.items():
            addends = [attention[:, text], tokens[:, text], attention[:, image], tokens[:, image]]
            metrics |= _ratio(f"{key}{name}", addends, samples)
        for key, chosen in {"image": image, "text": ~image, **_each_group()}.items():
            if tokens[:, chosen].any():
                addends = [attention[:, chosen], attention, tokens[:, chosen], tokens]
                metrics |= _ratio(f"aei_{key}{name}", addends, samples)
        return metrics


def prompt_groups(prompts: PromptBatch) -> dict[str, torch.Tensor]:
    """`GROUPS`, each (B, T) bool: they do not overlap and cover what is attended."""
    groups = token_groups(prompts)
    rest = {
        "image": groups["image_rest"],
        "soft_prompt": groups["soft_prompt"],
        "tag_words": groups["tag_words"],
        "question": groups["question"] | groups["last"],
    }
    covered = torch.stack(list(rest.values())).any(0)  # (B, T)
    return {**rest, "first": prompts.attention_mask.bool() & ~covered}


def layer_ranges(num_layers: int) -> dict[str, slice]:
    """Suffix of a score → the layers behind it: all, thirds (as equal as can be), each."""
    edges = [round(part * num_layers / 3) for part in range(4)]
    ranges = {"": slice(0, num_layers)}
    for name, start, stop in zip(THIRDS, edges, edges[1:], strict=False):
        if stop > start:
            ranges[f"_{name}"] = slice(start, stop)
    return {**ranges, **{f"_layer_{layer}": slice(layer, layer + 1) for layer in range(num_layers)}}


def _each_group() -> dict[str, np.ndarray]:
    return {name: np.array([name == group for group in GROUPS]) for name in GROUPS if name != "image"}


def _ratio(name: str, addends: Sequence[np.ndarray], samples: Sequence[str]) -> dict[str, float]:
    """(a / b) / (c / d) of sums over samples, with its interval; nothing where a part is zero."""
    rows = np.stack([part.sum(-1) for part in addends], axis=-1)  # (n, 4)

    def statistic(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3])

    if (rows.sum(0) <= 0).any():
        return {}
    return estimate(rows, statistic, samples).flat(name)
