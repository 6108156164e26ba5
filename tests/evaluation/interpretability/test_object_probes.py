"""What is asked about an object, and which answers show that it was seen."""

import pytest
from small_vlms import object_records

from poise.evaluation.interpretability.objects import FORMS, mention, object_probe, records_with_objects
from poise.processing import Scenes


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("dog", "A dog and a cat.", "dog"),
        ("dog", "two Dogs", "Dogs"),
        ("dog", "a hotdog", None),
        ("dog", "a doghouse", None),
        ("bus", "some buses", "buses"),
        ("red ball", "a red\n ball here", "red\n ball"),
        ("red ball", "a red , ball", None),
        ("c++", "the c++ book", "c++"),
        ("", "anything", None),
    ],
)
def test_mention(name, text, found):
    span = mention(name, text)
    assert (None if span is None else text[slice(*span)]) == found


def test_scenes_ask_about_an_object_whose_shape_occurs_once():
    probed = 0
    for record in Scenes("prior_broken", size=60):
        probe = object_probe(record)
        objects = record["metadata"]["objects"]
        if probe is None:
            shapes = [item["shape"] for item in objects]
            assert all(shapes.count(shape) > 1 for shape in shapes)
            continue
        probed += 1
        color, shape = probe.name.split()
        (item,) = [item for item in objects if item["shape"] == shape]
        assert item["color"] == color and list(probe.box) == list(item["bbox"])
        assert probe.questions["vqa"] == f"what color is the {shape} ?"
        assert probe.is_identified("vqa", color) and not probe.is_identified("vqa", f"not {color}")
        assert probe.is_identified("polling", "yes") and not probe.is_identified("polling", "no")
        assert probe.is_identified("generative", record["captions"][0])
        assert probe.questions["polling"].startswith("is there a")
    assert probed > 40


def test_records_with_boxes():
    probe = object_probe(object_records(2)[1])
    assert probe.name == "red ball" and probe.questions["polling"] == "Is there a red ball in this image?"
    assert probe.questions["vqa"] == "is the red ball there ?" and probe.answers == ("red",)


def test_expressions_name_the_object():
    record = {**object_records(1)[0], "task": "grounding", "question": "the brown dog", "metadata": {}}
    probe = object_probe(record)
    assert probe.name == "brown dog" and set(probe.questions) == {"generative", "polling"}
    assert probe.questions["polling"] == "Is there a brown dog in this image?"


def test_records_without_a_box_or_an_image():
    record = object_records(1)[0]
    assert object_probe({**record, "bbox": None}) is None
    with pytest.raises(ValueError, match="'r0' has a bbox but its image is not opened"):
        object_probe({**record, "image": "photo.jpg"})


def test_the_first_records_with_a_box_and_the_forms_that_they_offer():
    boxed = object_records(4)
    boxed[1]["bbox"] = None
    chosen, forms = records_with_objects(boxed, 2)
    assert [record["id"] for record in chosen] == ["r0", "r2"] and forms == FORMS
    nameless = [{**record, "metadata": {}} for record in boxed]
    assert records_with_objects(nameless, 4)[1] == ("vqa",)
    unknown, forms = records_with_objects([{**record, "bbox": None} for record in boxed], 3)
    assert [record["id"] for record in unknown] == ["r0", "r1", "r2"] and forms == ()
    scenes, forms = records_with_objects(Scenes("test", size=4, tasks=("caption",)), 3)
    assert len(scenes) == 3 and forms == FORMS
