"""`poise rank-encoders`: what it must find, its table and its plot."""

import json

import pytest
import torch
from PIL import Image

from poise.command_line import main as poise
from poise.commands.rank_encoders import main
from poise.training.align.caption_pairs import load_pairs
from poise.training.curation import encoder_states
from poise.training.curation.encoder_ranking import best_by_pair, rank_encoders
from poise.training.curation.encoder_states import TextStates, VisionStates


def test_a_trained_tower_is_told_from_an_untrained_one(tmp_path, capsys):
    words = ["--vision", "random:tiny:vision", "tiny:vision", "--text", "tiny:tag_encoder", "--samples", "192"]
    assert main([*words, "--batch-size", "64", "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "ranking.json").read_text())
    assert content["best"]["vision"] == "tiny:vision" and content["best"]["vision_layer"] > 0
    best = {pair["vision"]: pair["cka"] for pair in reversed(content["pairs"])}
    assert best["tiny:vision"] > 2 * best["random:tiny:vision"]
    assert len(content["pairs"]) == 2 * 5 * 3  # every layer of both towers with every layer of the encoder
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[1].startswith("tiny:vision") and f"--vision_feature_layer {content['best']['vision_layer']}" in lines[-1]
    )
    with Image.open(tmp_path / "ranking.png") as image:
        assert image.size[0] > 300


def test_the_best_layer_is_found_where_it_is_known():
    pairs = load_pairs("scenes", "test", {"size": 32})
    texts = {text: number for number, text in enumerate(sorted({captions[0] for captions in pairs.captions}))}
    said = [texts[captions[0]] for captions in pairs.captions]  # a few scenes share their caption
    meaning = torch.randn(len(texts), 6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    place = iter([0, 16])

    def vision(images):
        start = next(place)
        rows = slice(start, start + len(images))
        return [noise[rows], meaning[said[rows]], noise[rows] + 0.1 * meaning[said[rows]]]

    def text(words):
        return [meaning[[texts[word] for word in words]]]

    ranking = rank_encoders({"v": vision}, {"t": text}, pairs, batch_size=16)
    assert (ranking[0].vision_layer, ranking[0].text_layer) == (1, 0) and ranking[0].cka == pytest.approx(1.0, abs=1e-6)
    assert best_by_pair(ranking) == ranking[:1]


def test_batches_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        rank_encoders({}, {}, load_pairs("scenes", "test", {"size": 8}), batch_size=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "3"], "samples=3 images: CKA compares at least 4 at once"),
        (["--device", "tpu"], "device='tpu' is no device of torch"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl': there is no such file"),
        (["--output", __file__], "test_encoder_ranking.py"),
    ],
)
def test_mistakes_are_found_before_an_encoder_is_loaded(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoder_states, "load_encoder", lambda *args, **kwargs: pytest.fail("an encoder was loaded"))
    assert poise(["rank-encoders", "--output", str(tmp_path), *words]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("poise rank-encoders: ") and message in said


def test_an_encoder_of_the_wrong_kind_is_named():
    with pytest.raises(OSError, match="text='tiny:vision' could not be loaded"):
        TextStates("tiny:vision")


@pytest.mark.parametrize("states, argument", [(VisionStates, "vision"), (TextStates, "text")])
def test_an_encoder_that_is_nowhere_is_named(states, argument):
    with pytest.raises(OSError, match=f"{argument}='nowhere' could not be loaded: name a folder"):
        states("nowhere")
