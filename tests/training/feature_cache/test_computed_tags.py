"""Tags of a tagger in place of the records' own: computed once, kept, noticed when anything changed; in `poise sft`."""

import json

import pytest

from poise.commands.train import SFT
from poise.processing import Scenes, TaskRecords
from poise.processing.records.record_data import ChosenRecords, RecordMixture
from poise.processing.records.task_record_files import write_task_records
from poise.processing.taggers import DualEncoderTagger
from poise.training.feature_cache.cached_records import with_tags_of
from poise.training.sft.recipe import load_recipe
from poise.training.sft.records import load_records


@pytest.fixture(scope="module")
def tagger_folder(tiny_dual_encoder, tiny_pair_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    names = ["red square", "blue star", "green ring", "white cross"]
    DualEncoderTagger(
        tiny_dual_encoder(), tiny_pair_processor, names, ["a {}"], temperature=0.5, bias=0.0, threshold=0.0, max_tags=3
    ).save_pretrained(folder)
    return folder


def scenes(size=6, **settings):
    return Scenes("train", size=size, tasks=("vqa",), question_types=("color",), **settings)


def test_kept_tags_are_those_the_tagger_gives(tagger_folder, tmp_path):
    tagger, plain = DualEncoderTagger.from_pretrained(tagger_folder), scenes()
    expected = tagger.tag_records(plain.__getitems__(range(6)))
    tagged = with_tags_of(str(tagger_folder), plain, tmp_path, batch_size=4)
    assert [record["tags"] for record in tagged] == expected and all(len(tags) == 3 for tags in expected)
    assert [record["tags"] for record in tagged.__getitems__([5, 0])] == [expected[5], expected[0]]
    assert {**tagged[2], "tags": None, "image": None} == {**plain[2], "tags": None, "image": None}
    assert tagged[2]["image"].tobytes() == plain[2]["image"].tobytes()
    part = with_tags_of(str(tagger_folder), ChosenRecords(plain, [3, 1]), tmp_path)
    assert [record["tags"] for record in part] == [expected[3], expected[1]]
    bare = tagged.rows([4], images=False)[0]
    assert bare["tags"] == expected[4] and isinstance(bare["image"], str)  # the scene's name


def test_every_source_is_tagged_and_evaluation_is_chosen_over_all_of_them(tagger_folder, tmp_path):
    tagger = DualEncoderTagger.from_pretrained(tagger_folder)
    for name, size in (("a", 6), ("b", 4), ("c", 5)):
        drawn = scenes(size, seed=len(name) + size)
        write_task_records([{**drawn[n], "id": f"{name}{n}"} for n in range(size)], tmp_path / f"{name}.jsonl")
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in "abc"}
    recipe = load_recipe("demo", {
        "data.train": [{"name": sources["a"], "weight": 1}, {"name": sources["b"], "weight": 2}],
        "data.evaluation": [sources["b"], sources["c"]], "evaluation_samples": 3, "data.tagger": str(tagger_folder),
        "output_dir": str(tmp_path / "run"),
    })  # fmt: skip
    mixture, evaluation = load_records(recipe)
    assert isinstance(mixture, RecordMixture) and len(mixture) == 10
    for epoch in (0, 1):
        mixture.set_epoch(epoch)
        for record in (mixture[index] for index in range(len(mixture))):
            assert record["tags"] == tagger.tag_records([record])[0]
    assert [record["id"] for record in evaluation] == ["b0", "b3", "c2"]
    assert [record["tags"] for record in evaluation] == tagger.tag_records(list(evaluation))
    with pytest.raises(ValueError, match="cannot tag a RecordMixture once and for all"):
        with_tags_of(str(tagger_folder), mixture, tmp_path)


def test_what_changed_is_tagged_again_and_what_did_not_is_not(tagger_folder, tmp_path, monkeypatch):
    with_tags_of(str(tagger_folder), scenes(), tmp_path)
    asked = []
    similarities = DualEncoderTagger.similarities

    def counted(self, images):
        asked.append(len(images))
        return similarities(self, images)

    monkeypatch.setattr(DualEncoderTagger, "similarities", counted)
    with_tags_of(str(tagger_folder), scenes(), tmp_path)
    assert asked == []
    with_tags_of(str(tagger_folder), scenes(seed=1), tmp_path)
    assert sum(asked) == 6
    settings = json.loads((tagger_folder / "tagger.json").read_text())
    other = {**settings, "temperature": 0.25}
    (tagger_folder / "tagger.json").write_text(json.dumps(other))
    try:
        with_tags_of(str(tagger_folder), scenes(), tmp_path)
    finally:
        (tagger_folder / "tagger.json").write_text(json.dumps(settings))
    assert sum(asked) == 12


def test_records_without_an_image_have_no_tags(tagger_folder, tmp_path):
    records = TaskRecords([{"image": None, "task": "vqa", "question": "why ?", "answers": ["so"]}])
    assert with_tags_of(str(tagger_folder), records, tmp_path)[0]["tags"] == []


def test_sft_reads_the_taggers_tags(tagger_folder, tmp_path, monkeypatch):
    """The collator sees them, in training and in evaluation, and no tag of the scenes' own."""
    from poise.processing.batching import collators

    seen = []
    check = collators.TrainingCollator.__call__

    def watched(self, records):
        seen.extend(name for record in records for name, _ in record["tags"])
        return check(self, records)

    monkeypatch.setattr(collators.TrainingCollator, "__call__", watched)
    code = SFT.main(
        ["--config", "demo", "--tagger", str(tagger_folder), "--max_steps", "2", "--per_device_train_batch_size", "4",
         "--data.scenes", "{size: 16, tasks: [vqa], question_types: [color]}", "--evaluation_samples", "2",
         "--router_type", "none", "--align_words", "false", "--align_pictures", "0", "--output_dir", str(tmp_path),
         "--disable_tqdm", "true"]
    )  # fmt: skip
    assert code == 0 and len(seen) >= 24
    assert set(seen) <= {"red square", "blue star", "green ring", "white cross"}
    assert (tmp_path / "model" / "config.json").is_file() and any((tmp_path / "tags").glob("*/shard-*"))


def test_a_tagger_that_is_not_there_is_noticed_before_a_model_is_loaded(tmp_path, monkeypatch):
    from poise.training.sft import assembly

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(assembly.PoiseForConditionalGeneration, "from_backbones", refuse)
    with pytest.raises((ValueError, OSError), match="nowhere"):
        SFT.main(["--config", "demo", "--tagger", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "run")])
