"""Tags and captions by image from scenes, JSON lines and annotated photos; held-out images are never trained on."""

import json

import pytest
from PIL import Image

from poise.processing import write_task_records
from poise.processing.tags import Tag
from poise.training.tag_encoder.data import load_tagged_captions, split_held_out


@pytest.fixture
def photos(tmp_path):
    """A folder of six annotated photos, one of them without labels, and a vocabulary of words that none shows."""
    (tmp_path / "images").mkdir()
    captions, tags = [], []
    for number in range(6):
        name = f"photo_{number}.jpg"
        Image.new("RGB", (16, 12)).save(tmp_path / "images" / name)
        captions.append({"image": name, "captions": [f"a dog {number}", f"one dog {number}"]})
        tags.append({"image": name, "labels": ["dog", "ball"] if number else []})
    for file, rows in (("captions.jsonl", captions), ("tags.jsonl", tags)):
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.txt").write_text("abacus\nabalone\n3D glasses\n\nzebu")
    return tmp_path


def test_false_tags_of_photos_come_from_the_vocabulary(photos):
    images = load_tagged_captions(str(photos), seed=0, vocabulary="words.txt", invented=1.0)
    assert len(images) == 5  # the one without labels has no tags
    words = {"abacus", "abalone", "3D glasses", "zebu"}
    for image in images:
        names = {tag.name for tag in image.tags}
        assert {"dog", "ball"} <= names and len(names & words) == 2 == len(names - {"dog", "ball"})
        assert len(image.captions) == 2
        assert [tag.score for tag in image.tags] == sorted((tag.score for tag in image.tags), reverse=True)
    again = load_tagged_captions(str(photos), seed=0, vocabulary="words.txt", invented=1.0)
    other = load_tagged_captions(str(photos), seed=1, vocabulary="words.txt", invented=1.0)
    assert images == again and images != other
    without = load_tagged_captions(str(photos), seed=0, vocabulary="words.txt", invented=0.0)
    assert all({tag.name for tag in image.tags} == {"dog", "ball"} for image in without)
    with pytest.raises(FileNotFoundError, match="data.vocabulary='wrods.txt'"):
        load_tagged_captions(str(photos), seed=0, vocabulary="wrods.txt")


def test_records_of_one_image_are_one_image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        {"image": str(tmp_path / "a.png"), "task": "caption", "captions": ["one", "two"], "tags": [["dog", 0.9]]},
        {"image": str(tmp_path / "a.png"), "task": "caption", "captions": ["two", "three"], "tags": [["dog", 0.9]]},
        {"image": None, "task": "caption", "captions": ["words alone"], "tags": [["cat", 0.5]]},
    ]
    write_task_records(rows, tmp_path / "train.jsonl")
    first, second = load_tagged_captions(str(tmp_path / "train.jsonl"), seed=0)
    assert first.captions == ["one", "two", "three"] and first.tags == [Tag("dog", 0.9)]
    assert second.captions == ["words alone"]


def test_nothing_to_learn_from_is_said(tmp_path):
    write_task_records([{"image": None, "task": "caption", "captions": ["no tags"]}], tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match="no image with both tags and captions"):
        load_tagged_captions(str(tmp_path / "train.jsonl"), seed=0)


def test_held_out_images_are_apart_and_drawn_by_the_seed():
    images = load_tagged_captions("scenes", seed=0, scenes={"size": 40})
    train, held_out = split_held_out(images, 0.25, seed=0)
    names = [{image.name for image in part} for part in (train, held_out)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == len(images)
    assert len(held_out) == round(len(images) * 0.25)
    assert split_held_out(images, 0.25, seed=0) == (train, held_out) != split_held_out(images, 0.25, seed=1)
    with pytest.raises(ValueError, match="held_out=0.01"):
        split_held_out(images, 0.01, seed=0)


def test_shared_photos_have_labels_and_ram_words(shared_folder):
    images = load_tagged_captions(str(shared_folder / "data"), seed=0, vocabulary="ram_tag_list.txt")
    assert len(images) == 142
    assert all(len(image.captions) >= 5 and image.tags for image in images)
    words = set((shared_folder / "data" / "ram_tag_list.txt").read_text().splitlines())
    labels = set(json.loads((shared_folder / "data" / "coco80_names.json").read_text()))
    false = [tag for image in images for tag in image.tags if tag.name not in labels]
    assert false and {tag.name for tag in false} <= words
