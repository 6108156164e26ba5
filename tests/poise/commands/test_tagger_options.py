"""`poise ask --tagger` and `poise evaluate --tagger`: whose tags the model gets."""

import pytest

from poise.commands import ask
from poise.commands.evaluate import main as evaluate
from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.processing import Scenes
from poise.processing.taggers import DualEncoderTagger


@pytest.fixture(scope="module")
def tagger(tiny_dual_encoder, tiny_pair_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    made = DualEncoderTagger(
        tiny_dual_encoder(), tiny_pair_processor, ["red square", "blue star"], ["a {}"], temperature=0.5, bias=0.0,
        threshold=0.0,
    )  # fmt: skip
    made.save_pretrained(folder)
    return folder, made


def test_ask_gives_the_model_the_taggers_tags(tagger, tmp_path, monkeypatch, capsys):
    folder, made = tagger
    scene = Scenes("test", size=1)[0]["image"]
    scene.save(tmp_path / "scene.png")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(ask, "answer", lambda model, image, question, tags, *rest: f"saw {tags}")
    words = [str(tmp_path), str(tmp_path / "scene.png"), "what ?", "--tagger", str(folder)]
    assert ask.main(words) == 0
    shown = capsys.readouterr().out
    assert f"saw {made([scene])[0]}" in shown and shown.startswith("tags: ")
    with pytest.raises(ValueError, match="give one of them"):
        ask.main([*words, "--tags", "red square:0.9"])


def test_evaluate_asks_with_the_taggers_tags_and_remembers_whose_they_are(tagger, tmp_path, monkeypatch):
    folder, made = tagger
    seen = []
    monkeypatch.setattr("poise.model_loading.load_model", lambda *args, **kwargs: (None, None))
    monkeypatch.setattr("poise.commands.evaluate.conditions", lambda *args: {})  # asks the model for a prompt
    monkeypatch.setattr(
        GenerationEvaluator, "__call__", lambda self, model, processor, records: seen.append((self, records)) or {}
    )
    words = ["nowhere", "--data", "scenes:test,size=3", "--output", str(tmp_path)]
    assert evaluate([*words, "--tagger", str(folder)]) == 0 and evaluate(words) == 0
    (with_tagger, tagged), (without, plain) = seen
    scenes = Scenes("test", size=3)
    assert [record["tags"] for record in tagged] == made.tag_records(scenes.__getitems__(range(3)))
    assert [record["tags"] for record in plain] == [record["tags"] for record in scenes]
    assert with_tagger.settings()["tagger"] == str(folder) and "tagger" not in without.settings()
