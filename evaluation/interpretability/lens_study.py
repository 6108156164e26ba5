"""The logit lens over many records: a page and maps of some, and over all how often a patch names the object on it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from ..evaluator import Record
from ..whole_files import whole_file, write_whole
from .logit_lens import LogitLens, logit_lens
from .logit_lens_page import logit_lens_page
from .objects import object_probe, patches_under
from .report import draw_word_heat


def study_lens(
    model: nn.Module,
    processor: Any,
    records: Iterable[Record],
    folder: Path,
    form: str = "vqa",
    images: int = 8,
    words: Sequence[str] | None = None,
    top_k: int = 5,
    with_tags: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Writes `logit_lens.html`, and into `logit_lens/` the arrays of each image and a heat map of each word.

    Args:
        records: task records; those whose object is known are counted, others are only drawn.
        form (`str`, *optional*, defaults to `"vqa"`): which question of [`ObjectProbe`] is asked, where there is one.
        images (`int`, *optional*, defaults to 8): how many are drawn.
        words (*optional*): to map; by default those of the object's name.

    Returns:
        `dict` with `samples`; `object` and `rest`, lists over the L + 1 depths: mean share of the patches, on the
        object and elsewhere, whose likeliest word is one of the words; `pictures`, the drawn ids; `words` of each.

    Raises:
        ValueError: no record has an image, or as [`logit_lens`].
    """
    (folder / "logit_lens").mkdir(parents=True, exist_ok=True)
    drawn: list[LogitLens] = []
    shares: list[np.ndarray] = []  # of each sample (L + 1, 2)
    for record in tqdm(records, desc="logit lens", unit="sample", disable=not progress):
        probe = object_probe(record)
        if record["image"] is None or (probe is None and len(drawn) >= images):
            continue
        question = record.get("question") or "?" if probe is None else probe.questions.get(form, probe.name)
        chosen = list(words or (probe.name.split() if probe else []))
        tags = record.get("tags") or [] if with_tags else []
        lens = logit_lens(model, processor, record["image"], question, tags, chosen, top_k, title=str(record["id"]))
        if probe is not None:
            under = patches_under(lens.region, lens.grid, probe.image, probe.box)
            lens.object_patches = under if under.any() else None
        if lens.object_patches is not None and chosen:
            says, inside = lens.says_word(), lens.object_patches
            if not inside.all():
                shares.append(np.stack([says[:, inside].mean(-1), says[:, ~inside].mean(-1)], axis=-1))
        if len(drawn) < images:
            drawn.append(lens)
            with whole_file(folder / "logit_lens" / f"{_file_name(lens.title)}.npz") as unfinished:
                lens.save(unfinished)
            for word in chosen:
                draw_word_heat(lens, word, folder / "logit_lens" / f"{_file_name(f'{lens.title}-{word}')}.png")
    if not drawn:
        raise ValueError("records holds no image for the logit lens: give records with images.")
    write_whole(folder / "logit_lens.html", logit_lens_page(drawn))
    mean = np.mean(shares, axis=0) if shares else np.zeros((0, 2))  # (L + 1, 2)
    return {
        "samples": len(shares),
        "object": mean[:, 0].tolist(),
        "rest": mean[:, 1].tolist(),
        "pictures": [lens.title for lens in drawn],
        "words": {lens.title: lens.words for lens in drawn},
        "reads_encoder": drawn[0].reads_encoder,
    }


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)
