"""`poise data convert` and `poise data show`."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from poise.command_line import main
from poise.processing.batching.collators import TrainingCollator
from poise.processing.batching.data_preview import ANSWER, BOX, MARGIN, PLACES, _flow, draw_preview
from poise.processing.records.task_record_files import load_task_records
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.assembly import processor_of
from poise.training.sft.recipe import load_recipe


def pixels_of(path, color):
    """How many pixels of a sheet have this colour."""
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.asarray(Image.open(path)) == wanted).all(axis=-1).sum())


def test_published_files_become_records(tmp_path, capsys):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "000000000001.jpg")
    published = {"images": [{"id": 1, "file_name": "000000000001.jpg"}],
                 "annotations": [{"image_id": 1, "id": 4, "caption": "a wall"}]}  # fmt: skip
    (tmp_path / "captions.json").write_text(json.dumps(published))
    words = [
        "data",
        "convert",
        "coco-captions",
        str(tmp_path / "captions.json"),
        "--output",
        str(tmp_path / "out.jsonl"),
    ]
    assert main(words) == 1 and "--images" in capsys.readouterr().err
    assert main([*words, "--images", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("1 records in")
    assert load_task_records(tmp_path / "out.jsonl")[0]["captions"] == ["a wall"]
    words[2] = "coco-caption"
    assert main(words) == 1 and "Did you mean 'coco-captions'" in capsys.readouterr().err


def test_the_sheet_shows_places_answers_and_boxes(tmp_path, capsys):
    shown = {}
    for task in ("grounding", "vqa"):
        path = tmp_path / f"{task}.png"
        words = ["data", "show", f"scenes:train,tasks={task}+{task},size=40", "--count", "3", "--output", str(path)]
        assert main(words) == 0
        shown[task] = {color: pixels_of(path, color) for color in (ANSWER, PLACES, BOX)}
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "grounding.png"), str(tmp_path / "vqa.png")]
    assert printed.err.count("tag scores are simulated, some tags invented") == 2
    assert shown["grounding"][BOX] > 500 and shown["vqa"][BOX] == 0
    assert shown["vqa"][PLACES] > 3000
    assert shown["grounding"][ANSWER] > shown["vqa"][ANSWER] > 1000  # a box is more tokens than a word


def test_the_sheets_rows_do_not_overlap(tmp_path):
    """The third card stands below the first two as it does alone."""
    records = [Scenes("train", size=40, tasks=("vqa",))[place] for place in range(3)]
    collator = TrainingCollator(processor_of(load_recipe("demo")))
    draw_preview(records, collator, tmp_path / "all.png", "title")
    draw_preview(records[2:], collator, tmp_path / "one.png", "title")
    sheet, alone = Image.open(tmp_path / "all.png"), Image.open(tmp_path / "one.png")
    card = alone.crop((MARGIN, 96, alone.width - MARGIN, alone.height - MARGIN))
    place = (MARGIN, sheet.height - MARGIN - card.height)
    below = sheet.crop((*place, place[0] + card.width, place[1] + card.height))
    assert below.tobytes() == card.tobytes()
    draw_preview(records[:2], collator, tmp_path / "two.png", "title")
    assert sheet.height == Image.open(tmp_path / "two.png").height + card.height + MARGIN


def test_the_answer_of_a_card_begins_a_line_of_its_own():
    """Chips of 8 + 10 a letter, 3 apart; a line is 27 high and ends 22 below its top."""
    draw = SimpleNamespace(textlength=lambda text, font: 10 * len(text))
    chips = [("ab", "", False), ("abc", "", False), ("ab", "", False), ("a", "", True), ("a", "", True)]
    places, end = _flow(draw, chips, SimpleNamespace(token=None), 5, 80, 100)
    assert places == [(5, 100, 28), (36, 100, 38), (5, 127, 28), (5, 154, 18), (26, 154, 18)]
    assert end == 154 + 22
    assert _flow(draw, chips[3:], SimpleNamespace(token=None), 5, 80, 100)[0][0] == (5, 100, 18)
    assert _flow(draw, [("a" * 20, "", False)], SimpleNamespace(token=None), 5, 80, 100)[0] == [(5, 100, 75)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nowhere.jsonl"], "there is no such file of task records"),
        (["show", "--count", "0"], "--count is 0"),
        (["show", "--output", "no/such/folder/x.png"], "make it first"),
        (["show", "--output", "sheet.txt"], "'sheet.txt': the sheet is a PNG file"),
        (["show", "--model", "."], "--model '.' holds no processor_config.json"),
        (["convert", "okvqa", "gone.json", "--output", "x.jsonl"], "there is no such file"),
    ],
)
def test_slips_are_one_line(words, message, capsys):
    assert main(["data", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
