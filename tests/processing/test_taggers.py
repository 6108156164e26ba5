"""Taggers: scores, order, thresholds, saving; foreign dual encoders; written-down tags."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from poise.processing import Scenes, TaskRecords
from poise.processing.records.record_data import ChosenRecords
from poise.processing.records.tagged_records import PrecomputedTags, TaggedRecords, load_tagger
from poise.processing.taggers import DualEncoderTagger, ZeroShotTagger

NAMES = ["red square", "blue star", "green ring"]


@pytest.fixture(scope="module")
def images():
    return [record["image"] for record in Scenes("test", size=3).__getitems__(range(3))]


@pytest.fixture
def tagger(tiny_dual_encoder, tiny_pair_processor):
    return DualEncoderTagger(
        tiny_dual_encoder(), tiny_pair_processor, NAMES, ["a {}", "this is a {}"], temperature=0.1, bias=-1.0,
        threshold=0.0,
    )  # fmt: skip


def test_scores_are_the_calibrated_cosines_best_first(tagger, images):
    cosines = tagger.similarities(images)
    expected = 1 / (1 + np.exp(-(cosines.numpy() / 0.1 - 1.0)))
    for tags, row in zip(tagger(images), expected, strict=True):
        assert [tag.score for tag in tags] == sorted((tag.score for tag in tags), reverse=True)
        for tag in tags:
            assert tag.score == pytest.approx(row[NAMES.index(tag.name)], abs=1e-4)


def test_a_tag_of_two_templates_is_their_mean_direction(tagger):
    texts = tagger.embed_texts(["a red square", "this is a red square"])
    torch.testing.assert_close(tagger.tag_embeds()[0], torch.nn.functional.normalize(texts.mean(0), dim=-1))


def test_threshold_and_number_of_tags_are_kept(tagger, images):
    scores = sorted((tag.score for tag in tagger(images[:1])[0]), reverse=True)
    tagger.threshold = scores[1] - 1e-3
    assert len(tagger(images[:1])[0]) == 2
    tagger.max_tags = 1
    assert len(tagger(images[:1])[0]) == 1


def test_without_calibration_infonce_divides_one_certainty_and_sigmoid_judges_each(
    tiny_dual_encoder, tiny_pair_processor, images
):
    for loss_type, sums_to_one in (("infonce", True), ("sigmoid", False)):
        tagger = ZeroShotTagger(tiny_dual_encoder(loss_type=loss_type), tiny_pair_processor, NAMES, ["a {}"])
        totals = tagger.scores_of(tagger.similarities(images)).sum(1)
        assert torch.allclose(totals, torch.ones(3)) == sums_to_one


def test_saved_and_loaded_it_gives_the_same_tags(tagger, images, tmp_path):
    tagger.save_pretrained(tmp_path)
    loaded = load_tagger(tmp_path)
    assert loaded.settings() == tagger.settings() and loaded(images) == tagger(images)
    assert DualEncoderTagger.from_pretrained(tmp_path, threshold=1.0)(images) == [[], [], []]
    (tmp_path / "tagger.json").unlink()
    with pytest.raises(ValueError, match="tagger.json"):
        load_tagger(tmp_path)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_foreign_dual_encoders_can_tag(kind, tiny_pair_processor, images):
    tokenizer = tiny_pair_processor.tokenizer
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "eos_token_id": 3}
    vision = {**sizes, "image_size": 48, "patch_size": 16}
    config, model = (CLIPConfig, CLIPModel) if kind == "clip" else (SiglipConfig, SiglipModel)
    torch.manual_seed(0)
    tagger = ZeroShotTagger(
        model(config(text_config=text, vision_config=vision)), tiny_pair_processor, NAMES, threshold=0.0
    )
    scores = tagger.scores_of(tagger.similarities(images))
    assert scores.shape == (3, 3) and bool(((scores >= 0) & (scores <= 1)).all())
    assert torch.allclose(scores.sum(1), torch.ones(3)) == (kind == "clip")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocabulary": []}, "is empty"),
        ({"vocabulary": ["a", "b", "a"]}, "'a' twice"),
        ({"templates": ["a tag"]}, "without {}"),
        ({"threshold": 1.2}, "threshold=1.2"),
        ({"temperature": 0.1}, "both or neither"),
        ({"max_tags": 0}, "max_tags=0"),
    ],
)
def test_mistakes_name_argument_value_and_remedy(tiny_dual_encoder, tiny_pair_processor, options, words):
    with pytest.raises(ValueError) as caught:
        ZeroShotTagger(tiny_dual_encoder(), tiny_pair_processor, **{"vocabulary": NAMES, **options})
    assert words in str(caught.value)


def test_records_without_an_image_get_no_tags(tagger, images):
    tags = tagger.tag_records([{"image": None}, {"image": images[0]}])
    assert tags[0] == [] and tags[1] == tagger(images[:1])[0]


def test_written_tags_are_found_by_id_and_by_file(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    lines = [
        {"id": "a", "tags": [["dog", 0.9]]},
        {"image": "elsewhere/photo.png", "tags": [["cat", 0.5], ["cup", 0.7]]},
    ]
    (tmp_path / "tags.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tagger = load_tagger(tmp_path / "tags.jsonl")
    records = TaskRecords(
        [
            {"id": "a", "image": None, "task": "caption", "captions": ["x"], "tags": [["oracle", 1.0]]},
            {"id": "b", "image": str(tmp_path / "photo.png"), "task": "caption", "captions": ["x"]},
        ]
    )
    tagged = TaggedRecords(records, tagger)
    assert tagged[0]["tags"] == [("dog", 0.9)]
    assert tagged[1]["tags"] == [("cup", 0.7), ("cat", 0.5)] and tagged[1]["image"].size == (4, 4)
    assert TaggedRecords(ChosenRecords(records, [1]), tagger)[0]["tags"] == tagged[1]["tags"]
    with pytest.raises(ValueError, match="record 'c'"):
        tagger.tag_records([{"id": "c", "image": None}])


def test_bad_files_of_tags_name_the_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tagger(tmp_path / "nowhere.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "tags": []}\nnot json')
    with pytest.raises(ValueError, match="line 2"):
        load_tagger(tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        PrecomputedTags({"a": [["dog", 1.5]]})
    with pytest.raises(ValueError, match="row 1"):
        PrecomputedTags.from_rows([{"tags": []}])
