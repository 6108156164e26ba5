"""`poise look` and `poise ask` on folders of any family: the computation, the page, and what cannot be asked."""

import json
import re

import folders
import numpy as np
import pytest
import torch
from folders import small_image

from poise.command_line import main
from poise.evaluation.interpretability.look import cell_grid, look, painted
from poise.evaluation.interpretability.look_page import look_page
from poise.evaluation.probing.answers import answer_log_probabilities, greedy_answers
from poise.evaluation.probing.image_features import Change
from poise.evaluation.probing.parts import model_parts
from poise.evaluation.probing.prompt_reading import read_prompts
from poise.evaluation.probing.token_grids import TokenGrid

QUESTION = "what color is the star ?"
WIDE = small_image(60, 30, seed=1)


@pytest.fixture(scope="module")
def tiled():
    model, processor = folders.model("idefics3"), folders.processor("idefics3")
    return model, processor, look(model, processor, WIDE, QUESTION, max_new_tokens=3)


def test_every_figure_belongs_to_the_answer(tiled):
    _, _, found = tiled
    count = len(found.words)
    assert count and found.probabilities.shape == (count,)
    assert found.attention.shape[0] == found.effect.shape[0] == len(found.group_attention) == count
    np.testing.assert_allclose(found.attention.sum((1, 2)), 1.0, rtol=1e-5)
    assert ((found.group_attention.sum(-1) > 0.5) & (found.group_attention.sum(-1) < 1 + 1e-5)).all()
    assert [level.name for level in found.lens] == ["2 tiles", "whole image, 2 × 2"]
    assert found.lens[0].words.shape == (len(found.depths), 8, 3) and found.notes == []
    names = [some.name for some in found.circumstances]
    assert names[:3] == ["without the image", "an empty image", "without the question's words"] and len(names) == 6


@torch.no_grad()
def test_the_effect_of_a_cell_is_that_of_its_tokens(tiled):
    """The left upper cell: the first token of the left tile, and of the thumbnail the tokens whose middle it holds."""
    model, processor, found = tiled
    assert found.effect.shape[1:] == (2, 4)
    prompts = read_prompts(model_parts(model), processor, [WIDE], [QUESTION])
    tokens = greedy_answers(prompts, max_new_tokens=3)
    where = prompts.image[0].nonzero()[:, 0]
    places = torch.zeros_like(prompts.image)
    places[0, where[[0]]] = True
    mean = prompts.image_rows(prompts.image).mean(0)
    before = answer_log_probabilities(prompts, tokens)
    after = answer_log_probabilities(prompts, tokens, [Change(places, mean)])
    assert found.effect[:, 0, 0].sum() == pytest.approx(float(before - after), abs=1e-4)


def test_attention_is_spread_over_a_tokens_part_of_the_image():
    grids = [
        TokenGrid(np.array([[0, 1]]), (0.0, 0.0, 40.0, 40.0)),
        TokenGrid(np.array([[2]]), (0.0, -40.0, 40.0, 40.0)),
    ]
    raster = painted(grids, np.array([0.0, 1.0, 0.0]), (40, 40))
    assert raster[:, : raster.shape[1] // 2].sum() == 0 and raster.sum() == pytest.approx(1)
    np.testing.assert_allclose(raster[:, raster.shape[1] // 2 :], raster.max())
    # Half of the last token lies in padding: what stands there is left out.
    half = painted(grids, np.array([1.0, 1.0, 2.0]), (40, 40))
    assert half.sum() == pytest.approx(1) and np.ptp(half) < 1e-9


def test_cells_are_about_square_and_few():
    grids = [TokenGrid(np.arange(32 * 16).reshape(16, 32), (0.0, 0.0, 64.0, 32.0))]
    assert cell_grid(grids, 64, 32, 64) == (6, 10)
    assert cell_grid(grids[:1], 64, 32, 10_000) == (16, 32)


def test_the_page_needs_nothing_but_itself(tiled):
    page = look_page(tiled[2])
    assert "default-src 'none'" in page and QUESTION in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page) and "://" not in page
    numbers = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])
    assert numbers["words"] == tiled[2].words and len(numbers["lens"]) == 2


def test_words_of_a_vocabulary_cannot_end_the_script(tiled):
    from dataclasses import replace

    page = look_page(replace(tiled[2], words=["</script><b>"] * len(tiled[2].words), question="<i>?"))
    assert "</script><b>" not in page and "<i>?" not in page


@pytest.mark.parametrize("name", ["llava_next", "blip2_opt", "mllama"])
def test_the_commands_take_any_folder(name, tmp_path, capsys):
    model = str(folders.folder(name, tmp_path / name))
    WIDE.save(tmp_path / "image.png")
    assert main(["ask", model, str(tmp_path / "image.png"), QUESTION, "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr().out.strip().splitlines()[-1]
    page = tmp_path / "page.html"
    words = ["look", model, str(tmp_path / "image.png"), QUESTION, "--max-new-tokens", "3", "--cells", "4"]
    assert main([*words, "--output", str(page)]) == 0
    output = capsys.readouterr()
    assert output.out.strip().splitlines()[-1] == said and said
    assert said.split()[0] in page.read_text(encoding="utf-8")
    notes = [line for line in output.err.splitlines() if line.startswith("not asked: ")]
    assert bool(notes) == (name != "llava_next")
    assert all(re.match("not asked: (places|attention|effect|the answer without|an empty image)", n) for n in notes)


def test_what_does_not_belong_is_one_line_before_the_weights(tmp_path, capsys, monkeypatch):
    import transformers

    monkeypatch.setattr(
        transformers.AutoModelForImageTextToText, "from_pretrained", lambda *a, **k: pytest.fail("weights were loaded")
    )
    WIDE.save(tmp_path / "image.png")
    folder = folders.folder("llava", tmp_path / "llava")
    cases = {}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_index": 98, "image_token_id": 98}))
    cases["marks images by the token 99, the model by 98"] = folder
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(config))
    folders.tokenizer().save_pretrained(bare)
    cases["its processor could not be loaded"] = bare
    text = tmp_path / "text"
    transformers.LlamaConfig(vocab_size=8).save_pretrained(text)
    cases["takes no images"] = text
    for said, model in cases.items():
        assert main(["look", str(model), str(tmp_path / "image.png"), QUESTION]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in line and line.startswith("poise look: ")
