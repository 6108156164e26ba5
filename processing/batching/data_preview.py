"""A sheet of records as a model meets them: the image at its size, every token, what is supervised, box and tags."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..prompts import images_of
from ..records.task_record_files import opened_record
from ..tags import check_tags
from .collators import IGNORED, TrainingCollator

CARD = (900, 300)  # width and height in pixels; a card grows with its text
IMAGE, MARGIN = 240, 16
INK, FAINT, PAPER, EDGE = "#1d2430", "#7a8494", "#ffffff", "#d5dae2"
PROMPT, ANSWER, PLACES, SPECIAL = "#e9edf3", "#bfe8c7", "#cfe0fb", "#e4d9f7"
BOX, BAR = "#ff2d78", "#4c8bf5"
LEGEND = ((PROMPT, "prompt"), (PLACES, "image and soft-prompt places"), (SPECIAL, "special"), (ANSWER, "supervised"))


def draw_preview(
    records: Iterable[Mapping[str, Any]], collator: TrainingCollator, path: str | os.PathLike, title: str = "Records"
) -> int:
    """Writes the sheet as a PNG; returns how many records are on it.

    Everything comes out of the batch that training would get: pixels (brought back from their normalization), token
    ids and labels. Runs of placeholders are one chip. A record's box is drawn where it lies on the model's image.

    Args:
        records: task records.
        collator ([`TrainingCollator`]): made for the model.
        path: of the PNG.
        title (`str`, *optional*): above the cards.

    Raises:
        ValueError: no record; or a record is bad, as the collator tells it.
    """
    fonts = _Fonts()
    cards = [_card(opened_record(record), collator, fonts) for record in records]
    if not cards:
        raise ValueError("records is empty: there is nothing to show.")
    rows = [cards[place : place + 2] for place in range(0, len(cards), 2)]
    heights = [max(card.height for card in row) for row in rows]
    width = len(rows[0]) * (CARD[0] + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, 96 + sum(height + MARGIN for height in heights)), "#f3f5f8")
    _heading(ImageDraw.Draw(sheet), title, fonts)
    top = 96
    for row, height in zip(rows, heights, strict=True):
        for place, card in enumerate(row):
            sheet.paste(card, (MARGIN + place * (CARD[0] + MARGIN), top))
        top += height + MARGIN
    sheet.save(path, "PNG")
    return len(cards)


class _Fonts:
    """DejaVu, which matplotlib brings along: it has the letters of most languages."""

    def __init__(self) -> None:
        from matplotlib.font_manager import findfont

        def font(family: str, size: int) -> ImageFont.FreeTypeFont:
            return ImageFont.truetype(findfont(family), size)

        self.title, self.bold = font("DejaVu Sans:bold", 24), font("DejaVu Sans:bold", 15)
        self.text, self.token, self.small = (
            font("DejaVu Sans", 15),
            font("DejaVu Sans Mono", 15),
            font("DejaVu Sans", 13),
        )


def _heading(draw: ImageDraw.ImageDraw, title: str, fonts: _Fonts) -> None:
    draw.text((MARGIN, 14), title, INK, fonts.title)
    left = MARGIN
    for color, name in LEGEND:
        draw.rounded_rectangle((left, 58, left + 26, 76), 5, color, EDGE)
        draw.text((left + 34, 58), name, INK, fonts.small)
        left += 60 + int(draw.textlength(name, fonts.small))


def _card(record: Mapping[str, Any], collator: TrainingCollator, fonts: _Fonts) -> Image.Image:
    batch = collator([record])
    chips = _chips(batch, collator)
    tags = check_tags([tag for _, own in images_of(record) for tag in own])
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, right = MARGIN * 2 + IMAGE, CARD[0] - MARGIN
    places, bottom = _flow(scratch, chips, fonts, left, right, 58)
    tag_rows = -(-len(tags) // 2)
    height = max(CARD[1], bottom + 34 + 24 * max(1, tag_rows) + MARGIN)

    card = Image.new("RGB", (CARD[0], height), PAPER)
    draw = ImageDraw.Draw(card)
    draw.rounded_rectangle((0, 0, CARD[0] - 1, height - 1), 10, PAPER, EDGE)
    _image(card, draw, record, batch, collator, fonts)
    draw.text((left, MARGIN - 2), f"{record['task']}", INK, fonts.bold)
    supervised = int((batch["labels"] != IGNORED).sum())
    total = int(batch["input_ids"].shape[1]) + (supervised if collator.is_encoder_decoder else 0)
    said = f"{total} tokens, {supervised} supervised     {record['id']}"
    draw.text((left + 110, MARGIN - 1), _shortened(draw, said, fonts.small, right - left - 110), FAINT, fonts.small)
    for (x, y, width), (text, color, _) in zip(places, chips, strict=True):
        draw.rounded_rectangle((x, y, x + width, y + 22), 4, color)
        draw.text((x + 4, y + 2), text, INK, fonts.token)
    _tags(draw, tags, fonts, left, bottom + 34, (right - left) // 2)
    return card


def _chips(batch: Mapping[str, Any], collator: TrainingCollator) -> list[tuple[str, str, bool]]:
    """(text, colour, supervised) of every token of a batch of one; a run of placeholders is one chip."""
    processor = collator.processor
    tokenizer = processor.tokenizer
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    if collator.is_encoder_decoder:
        marked = [(token, False) for token in ids] + [(token, True) for token in labels]
    else:
        marked = [(token, label != IGNORED) for token, label in zip(ids, labels, strict=True)]
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    chips = []
    for (is_place, supervised), run in groupby(
        marked, key=lambda entry: (entry[0] == processor.image_token_id, entry[1])
    ):
        tokens = [token for token, _ in run]
        if is_place:
            images, prompts = processor.num_image_tokens, processor.num_prompt_tokens
            count = len(tokens) / (images + prompts)
            name = f"{images} image" + (f" + {prompts} soft-prompt" if prompts else "")
            chips.append((name if count == 1 else f"{count:g} × ({name})", PLACES, supervised))
            continue
        for token in tokens:
            color = ANSWER if supervised else SPECIAL if token in special else PROMPT
            chips.append((_written(tokenizer, token), color, supervised))
    return chips


def _written(tokenizer: Any, token: int) -> str:
    """A token as a reader knows it; white space that would be invisible is shown."""
    text = tokenizer.convert_ids_to_tokens(token)
    text = text if isinstance(text, str) else text.decode(errors="replace")
    return text.replace("Ġ", "·").replace("▁", "·").replace("Ċ", "↵").replace("\n", "↵") or "·"


def _flow(
    draw: ImageDraw.ImageDraw, chips: Sequence[tuple[str, str, bool]], fonts: _Fonts, left: int, right: int, top: int
) -> tuple[list[tuple[int, int, int]], int]:
    """(x, y, width) of every chip in lines from left to right, the answer on a line of its own; and where they end."""
    places = []
    x, y, before = left, top, False
    for text, _, supervised in chips:
        width = int(draw.textlength(text, fonts.token)) + 8
        if x > left and (x + width > right or (supervised and not before)):
            x, y = left, y + 27
        places.append((x, y, min(width, right - left)))
        x, before = x + width + 3, supervised
    return places, y + 22


def _image(
    card: Image.Image, draw: ImageDraw.ImageDraw, record: Mapping[str, Any], batch: Mapping[str, Any],
    collator: TrainingCollator, fonts: _Fonts,
) -> None:  # fmt: skip
    if "pixel_values" not in batch:
        draw.rounded_rectangle((MARGIN, MARGIN, MARGIN + IMAGE, MARGIN + IMAGE), 6, "#f3f5f8", EDGE)
        draw.text((MARGIN + IMAGE // 2, MARGIN + IMAGE // 2), "no image", FAINT, fonts.text, anchor="mm")
        return
    side_by_side = np.concatenate([np.asarray(pixels) for pixels in batch["pixel_values"]], axis=2)  # (3, H, N·W)
    seen = _seen(side_by_side, collator.processor.image_processor)
    scale = IMAGE / max(seen.size)
    size = (round(seen.width * scale), round(seen.height * scale))
    card.paste(seen.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC), (MARGIN, MARGIN))
    stored = ", ".join(f"{image.width}×{image.height}" for image, _ in images_of(record))
    note = f"{seen.width}×{seen.height}, stored {stored}"
    if "bbox" in record:
        box = _box_seen(record, seen.size, collator.processor.image_processor)
        if box is None:
            note += "; box not drawn: the model crops"
        else:
            corners = [MARGIN + value * scale for value in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
            draw.rectangle(corners, outline=PAPER, width=5)
            draw.rectangle(corners, outline=BOX, width=3)
    draw.text((MARGIN, MARGIN + size[1] + 6), note, FAINT, fonts.small)


def _seen(pixels: Any, image_processor: Any) -> Image.Image:
    """[3, H, W] as the tower gets it → an image."""
    values = np.asarray(pixels, dtype=np.float32).transpose(1, 2, 0)  # (H, W, 3)
    if getattr(image_processor, "do_normalize", False):
        values = values * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    if getattr(image_processor, "do_rescale", True):
        values = values / (getattr(image_processor, "rescale_factor", None) or 1 / 255)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _box_seen(record: Mapping[str, Any], size: tuple[int, int], image_processor: Any) -> list[float] | None:
    """The box in pixels of the model's image, or `None` where that is a part of the stored one."""
    if getattr(image_processor, "do_center_crop", False):
        return None
    across, down = size[0] / record["image"].width, size[1] / record["image"].height
    x, y, width, height = record["bbox"]
    return [x * across, y * down, width * across, height * down]


def _tags(draw: ImageDraw.ImageDraw, tags: Sequence[Any], fonts: _Fonts, left: int, top: int, column: int) -> None:
    if not tags:
        draw.text((left, top), "no tags", FAINT, fonts.small)
    for number, (name, score) in enumerate(tags):
        x, y = left + number % 2 * column, top + number // 2 * 24
        draw.text((x, y), _shortened(draw, name, fonts.small, column - 165), INK, fonts.small)
        draw.rectangle((x + column - 155, y + 3, x + column - 55, y + 13), "#edf0f5")
        draw.rectangle((x + column - 155, y + 3, x + column - 155 + 100 * score, y + 13), BAR)
        draw.text((x + column - 48, y), f"{score:.2f}", INK, fonts.small)


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while draw.textlength(text, font) > width and len(text) > 2:
        text = text[:-2].rstrip() + "…"
    return text
