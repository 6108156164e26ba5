import collections

import pytest
from PIL import Image

from poise.processing.prompts import Prompts, reference_texts, target_text

PHOTO = Image.new("RGB", (100, 50))
VQA = {"id": "a", "image": PHOTO, "task": "vqa", "question": "what ?", "answers": ["cat", "dog", "dog", "cat", "dog"]}
CAPTION = {"id": "b", "image": PHOTO, "task": "caption", "captions": ["a dog", "the dog", "one dog"]}
GROUNDING = {"id": "c", "image": PHOTO, "task": "grounding", "question": "the dog", "bbox": [50, 0, 50, 25]}


def test_messages_of_every_task():
    prompts = Prompts(caption="describe", grounding="find {expression} !")
    assert [prompts.question(record) for record in (VQA, CAPTION, GROUNDING)] == [
        "what ?",
        "describe",
        "find the dog !",
    ]
    assert prompts.question({**CAPTION, "question": "say it"}) == "say it"
    content = prompts.messages({**VQA, "tags": [("dog", 0.5)]})[0]["content"]
    assert content == [
        {"type": "image", "image": PHOTO, "tags": [("dog", 0.5)]},
        {"type": "text", "text": "what ?"},
    ]
    assert prompts.messages({**VQA, "image": None})[0]["content"] == [{"type": "text", "text": "what ?"}]


def test_what_should_be_said():
    assert target_text(VQA) == "dog"
    assert target_text({**VQA, "answers": ["cat", "dog"]}) == "cat"  # equal counts: the first
    assert target_text(GROUNDING) == "[500,0,999,500]"
    assert reference_texts(VQA) == VQA["answers"] and reference_texts(GROUNDING) == ["[500,0,999,500]"]


def test_captions_are_drawn_from_seed_epoch_and_record():
    draws = [
        target_text({**CAPTION, "id": number}, seed, epoch) for number in range(30) for seed, epoch in ((0, 0), (0, 1))
    ]
    assert draws == [
        target_text({**CAPTION, "id": number}, seed, epoch) for number in range(30) for seed, epoch in ((0, 0), (0, 1))
    ]
    assert draws[0::2] != draws[1::2]
    counts = collections.Counter(draws)
    assert set(counts) == set(CAPTION["captions"]) and min(counts.values()) > 8


@pytest.mark.parametrize("record", [VQA, CAPTION, GROUNDING])
def test_a_record_without_an_answer(record):
    bare = {name: value for name, value in record.items() if name not in ("answers", "captions", "bbox")}
    with pytest.raises(ValueError, match=f"Record '{record['id']}' of task '{record['task']}' has nothing to answer"):
        target_text(bare)
