"""[`Look`] as one HTML page that needs nothing but itself: no network, no library."""

from typing import Any

import numpy as np

from ...modeling.image_reliability import DISTRUSTED
from .html_pages import encoded, rendered, visible
from .look import LensLevel, Look

GROUP_NAMES = {
    "image": "the image",
    "soft_prompt": "soft prompt",
    "tag_words": "words of tags",
    "question": "the question",
    "rest": "template and first token",
}
_LARGE, _SMALL = 960, 300  # longest side of the images on the page, in pixels


def look_page(found: Look) -> str:
    """The page as text."""
    data = {
        "words": found.words,
        "probabilities": [round(float(value), 5) for value in found.probabilities],
        "groups": [GROUP_NAMES[name] for name in found.groups],
        "group_attention": np.round(found.group_attention, 5).tolist(),
        "attention": _rounded(found.attention, 6),
        "effect": _rounded(found.effect, 5),
        "depths": found.depths,
        "lens": [_level(level) for level in found.lens],
    }
    cards = [
        {
            "name": some.name,
            "answer": some.answer or "(nothing)",
            "changed": some.answer != found.answer,
            "kept": min(some.kept, 1.0),
            "percent": _percent(some.kept),
            "image": None if some.image is None else encoded(some.image, _SMALL),
        }
        for some in found.circumstances
    ]
    return rendered(
        "look.html.jinja",
        data,
        model=found.model,
        question=found.question,
        answer=found.answer or "(nothing)",
        image=encoded(found.image, _LARGE),
        small=max(found.image.size) <= 200,
        ratio=found.image.width / found.image.height,
        cards=cards,
        notes=found.notes,
        has_attention=found.attention.size > 0,
        has_effect=found.effect.size > 0,
        has_groups=found.group_attention.size > 0,
        has_lens=bool(found.lens),
        summary=summary(found),
    )


def summary(found: Look) -> str:
    """What was found, in two or three sentences."""
    sentences = []
    if found.trust is not None:
        doubt = ": unlike those it has seen, so do not rely on the answer" if found.trust < DISTRUSTED else ""
        sentences.append(f"The model's router trusts the image to {_percent(found.trust)}{doubt}.")
    same = [some for some in found.circumstances if some.answer == found.answer]
    blind = next((some for some in found.circumstances if some.name == "without the image"), None)
    if blind is not None:
        says = "gives the same answer" if blind.answer == found.answer else f"answers “{blind.answer or '(nothing)'}”"
        sentences.append(
            f"Without the image the model {says}, and its first answer keeps {_percent(blind.kept)} of its probability."
        )
    if found.group_attention.size:
        share = float(found.group_attention[:, found.groups.index("image")].mean())
        if share > 0:
            sentences.append(f"{_percent(share)} of the attention that generates the answer goes to the image.")
    if found.circumstances:
        sentences.append(f"The answer stays the same in {len(same)} of {len(found.circumstances)} other circumstances.")
    return " ".join(sentences)


def _percent(share: float) -> str:
    return "over 100 %" if share > 1.005 else f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"


def _rounded(maps: np.ndarray, digits: int) -> list[Any]:
    return np.round(maps, digits).tolist() if maps.size else []


def _level(level: LensLevel) -> dict[str, Any]:
    """Words as numbers in a list of those that occur."""
    shown = np.vectorize(visible, otypes=[object])(level.words)
    names = sorted(set(shown.ravel().tolist()))
    number = {name: place for place, name in enumerate(names)}
    return {
        "name": level.name,
        "boxes": np.round(level.boxes, 5).tolist(),
        "vocabulary": names,
        "words": np.vectorize(number.__getitem__, otypes=[int])(shown).tolist(),
        "shares": np.rint(level.shares * 1000).astype(int).tolist(),
    }
