"""The lens reads what the model itself would say, and its page and image show it."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from small_vlms import KINDS, QUESTIONS, TAGS, noise_images, small_vlm

from poise.evaluation.interpretability.html_pages import visible
from poise.evaluation.interpretability.lens_study import study_lens
from poise.evaluation.interpretability.logit_lens import finest_view, logit_lens, word_token_ids
from poise.evaluation.interpretability.logit_lens_page import logit_lens_page
from poise.evaluation.interpretability.report import draw_word_heat
from poise.evaluation.probing.prompt_reading import read_prompts
from poise.evaluation.probing.residual_stream import residual_stream
from poise.evaluation.probing.token_grids import TokenGrid

pytestmark = pytest.mark.numerics

CAUSAL = ("llama", "llava")


def lens_of(kind, top_k=4, words=("red", "dog"), title="an image"):
    vlm = small_vlm(kind)
    return logit_lens(vlm.model, vlm.processor, noise_images(1)[0], QUESTIONS[0], TAGS[0], words, top_k, title)


def one_prompt(vlm):
    return read_prompts(
        vlm.parts, vlm.processor, noise_images(1), QUESTIONS[:1], [[] if vlm.kind == "llava" else TAGS[0]]
    )


def probabilities(vlm, states):
    """Whole distributions at the visual tokens, (N, V), of states (1, T, D) that come out of the last layer."""
    text = vlm.model.config.get_text_config(decoder=True)
    scale = text.d_model**-0.5 if vlm.kind == "t5" else 1.0
    normed = vlm.parts.final_norm(states[0, one_prompt(vlm).placeholders[0]])
    return vlm.model.get_output_embeddings()(normed * scale).softmax(-1)


def hidden_states(vlm):
    prompts = one_prompt(vlm)
    more = {"decoder_input_ids": torch.tensor([[0]])} if vlm.kind == "t5" else {}
    found = vlm.model(**prompts.inputs, **more, output_hidden_states=True)
    return found.encoder_hidden_states if vlm.kind == "t5" else found.hidden_states


def assert_reads(lens, layer, expected):
    best = expected.topk(lens.top_ids.shape[2], dim=-1)
    assert np.array_equal(lens.top_ids[layer], best.indices.numpy())
    np.testing.assert_allclose(lens.top_probabilities[layer], best.values.numpy(), rtol=1e-4, atol=1e-7)
    tokenizer = small_vlm("llama").processor.tokenizer
    for place, word in enumerate(lens.words):
        ids = tokenizer.convert_tokens_to_ids([word])
        np.testing.assert_allclose(lens.word_probabilities[layer, :, place], expected[:, ids].sum(-1), rtol=1e-4)


@pytest.mark.parametrize("kind", CAUSAL)
@torch.no_grad()
def test_the_last_layer_is_the_models_own_output(kind):
    vlm, lens = small_vlm(kind), lens_of(kind)
    prompts = one_prompt(vlm)
    logits = vlm.model(**prompts.inputs).logits  # (1, T, V)
    assert_reads(lens, lens.num_layers, logits[0, prompts.placeholders[0]].softmax(-1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_first_depth_is_the_tokens_themselves(kind):
    vlm, lens = small_vlm(kind), lens_of(kind)
    assert_reads(lens, 0, probabilities(vlm, hidden_states(vlm)[0]))
    assert lens.top_ids.shape == (len(vlm.parts.layers) + 1, 9 if kind == "llava" else 11, 4)


@pytest.mark.parametrize("kind", CAUSAL)
@torch.no_grad()
def test_depths_between_are_the_models_hidden_states(kind):
    vlm, lens = small_vlm(kind), lens_of(kind)
    for layer in range(lens.num_layers):
        assert_reads(lens, layer, probabilities(vlm, hidden_states(vlm)[layer]))


@torch.no_grad()
def test_of_t5_the_encoder_is_read_with_its_norm_and_the_scaled_head():
    vlm, lens = small_vlm("t5"), lens_of("t5")
    states = hidden_states(vlm)[-1]  # behind the final norm
    language_model = vlm.model.model.language_model
    assert language_model.config.scale_decoder_outputs
    logits = language_model.lm_head(states[0, one_prompt(vlm).placeholders[0]] * language_model.config.d_model**-0.5)
    assert_reads(lens, lens.num_layers, logits.softmax(-1))
    assert lens.reads_encoder and not lens_of("llama").reads_encoder


def test_image_tokens_do_not_see_the_question_that_follows():
    vlm = small_vlm("llama")
    arguments = (vlm.model, vlm.processor, noise_images(1)[0])
    first, second = (logit_lens(*arguments, question) for question in QUESTIONS[:2])
    np.testing.assert_allclose(first.top_probabilities, second.top_probabilities, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"top_k": 0}, "top_k=0 must lie between 1 and the 35"),
        ({"top_k": 99}, "top_k=99"),
        ({"words": ["zebra"]}, "words holds 'zebra', which the model's tokenizer does not know"),
        ({"words": [" "]}, "words holds ' ': name a word"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        lens_of("llama", **arguments)


def test_a_word_is_its_first_token_with_and_without_a_space(monkeypatch):
    tokenizer = small_vlm("llama").processor.tokenizer
    assert word_token_ids(tokenizer, "red") == [tokenizer.convert_tokens_to_ids("red")]


@torch.no_grad()
def test_what_a_model_does_to_its_logits_is_done_to_every_depth():
    """A soft cap behind the head, as Gemma 2 has it."""
    vlm = small_vlm("llama")
    free = lens_of("llama")
    head = vlm.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: 0.5 * torch.tanh(output))
    try:
        lens = lens_of("llama")
        for layer in range(lens.num_layers):
            assert_reads(lens, layer, probabilities(vlm, hidden_states(vlm)[layer]))
        assert not np.allclose(lens.top_probabilities, free.top_probabilities, rtol=1e-2)
    finally:
        handle.remove()


def test_reading_leaves_the_layers_as_they_were():
    vlm = small_vlm("llama")
    lens_of("llama")
    assert len(residual_stream(one_prompt(vlm)).states) == 4
    assert not any("forward" in vars(layer) or layer._forward_pre_hooks for layer in vlm.parts.layers)


def test_tiles_are_put_together():
    tiles = [TokenGrid(np.arange(4).reshape(2, 2) + 4 * n, (20.0 * (n % 2), 10.0 * (n // 2), 20.0 * (n % 2 + 1),
                                                             10.0 * (n // 2 + 1))) for n in range(4)]  # fmt: skip
    view = finest_view([*tiles[::-1], TokenGrid(np.arange(16, 20).reshape(2, 2), (0.0, 0.0, 40.0, 20.0))])
    assert view.tokens.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert view.region == (0.0, 0.0, 40.0, 20.0)
    assert finest_view(tiles[:1]) is tiles[0]


def test_heat_and_words():
    lens = lens_of("llama")
    assert lens.heat("dog", 2).shape == (3, 3)
    assert np.array_equal(lens.heat("dog", 2).ravel(), lens.word_probabilities[2, :9, 1])
    with pytest.raises(ValueError, match="word='cat' was not chosen.*red, dog"):
        lens.heat("cat", 0)
    ids = {token for some in lens.word_ids for token in some}
    expected = [[int(row[0]) in ids for row in layer[:9]] for layer in lens.top_ids]
    assert np.array_equal(lens.says_word().reshape(lens.num_layers + 1, 9), expected)


def test_arrays_are_saved(tmp_path):
    lens = lens_of("llama")
    lens.save(tmp_path / "lens.npz")
    with np.load(tmp_path / "lens.npz") as arrays:
        assert np.array_equal(arrays["top_ids"], lens.top_ids) and arrays["words"].tolist() == ["red", "dog"]


class Elements(HTMLParser):
    """Every element with its attributes, and the text inside of scripts by id."""

    def __init__(self):
        super().__init__()
        self.elements, self.scripts, self.ids = [], {}, set()
        self._script = None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        self.ids.add(attrs.get("id"))
        if tag == "script":
            self._script = attrs.get("id", "code")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def parsed(page):
    elements = Elements()
    elements.feed(page)
    elements.close()
    return elements


def test_the_page_needs_nothing_but_itself():
    page = parsed(logit_lens_page([lens_of("llama"), lens_of("llama", title="another")], title="<b>& title"))
    for tag, attrs in page.elements:
        assert not {"src", "href", "srcset", "onclick"} & set(attrs), (tag, attrs)
        assert tag not in ("link", "iframe", "b")
    policy = [attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'") and "http" not in page.scripts["code"]
    # Everything that the script asks for is there.
    asked = set(re.findall(r"at\('(\w+)'\)", page.scripts["code"])) | {"data"}
    assert asked <= page.ids


def test_the_page_holds_what_was_read():
    lens = lens_of("llama")
    lens.object_patches = np.eye(3, dtype=bool)
    data = json.loads(parsed(logit_lens_page([lens])).scripts["data"])
    sample = data["samples"][0]
    words = np.array(data["vocabulary"])[np.array(sample["top"]).reshape(lens.top_ids.shape)]
    assert words[2, 5, 0] == lens.vocabulary[int(lens.top_ids[2, 5, 0])]
    shares = np.array(sample["share"]).reshape(lens.top_ids.shape) / data["scale"]
    np.testing.assert_allclose(shares, lens.top_probabilities, atol=1e-4)
    heat = np.array(sample["heat"]).reshape(lens.word_probabilities.shape) / data["heat_scale"]
    np.testing.assert_allclose(heat, lens.word_probabilities, atol=1e-6)
    assert sample["object"] == [0, 4, 8] and sample["grid"] == [3, 3]
    image = Image.open(io.BytesIO(base64.b64decode(sample["image"].partition(",")[2])))
    assert image.size == lens.image.size == (40, 30)


def test_words_of_the_vocabulary_are_only_ever_text():
    evil = "</script><img src=x onerror=alert(1)><!--"
    lens = lens_of("llama", title=evil)
    lens = replace(lens, vocabulary=dict.fromkeys(lens.vocabulary, evil), words=[evil, "dog"], question=evil)
    text = logit_lens_page([lens])
    page = parsed(text)
    assert json.loads(page.scripts["data"])["samples"][0]["title"] == evil
    assert [tag for tag, _ in page.elements].count("img") == 1 and text.count("</script>") == 2
    assert "innerHTML" not in page.scripts["code"]


def test_pages_need_images_of_one_kind():
    with pytest.raises(ValueError, match="lenses holds 0 images"):
        logit_lens_page([])
    with pytest.raises(ValueError, match=r"with \[3, 4\] top words"):
        logit_lens_page([lens_of("llama"), lens_of("llama", top_k=3)])


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" red", "red"), ("  ", "␣␣"), ("\n", "⏎"), ("a\tb", "a⇥b"), ("\x07", "<07>"), ("", "∅"), ("é", "é")],
)
def test_invisible_characters_are_shown(token, shown):
    assert visible(token) == shown


def test_page_and_image_are_made(tmp_path):
    lens = lens_of("t5")
    lens.object_patches = np.eye(3, dtype=bool)
    draw_word_heat(lens, "red", tmp_path / "heat.png")
    assert "This is an encoder" in logit_lens_page([lens])
    with Image.open(tmp_path / "heat.png") as image:
        assert image.width > 300 and len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_the_study_counts_on_and_off_the_object(tmp_path):
    vlm = small_vlm("llama")
    records = [
        {
            "id": f"r/{number}",
            "image": image,
            "task": "vqa",
            "question": QUESTIONS[0],
            "answers": ["red"],
            "bbox": [0, 0, 13, 10],
            "tags": [],
            "metadata": {"object": "dog"},
        }
        for number, image in enumerate(noise_images(3))
    ]
    found = study_lens(vlm.model, vlm.processor, records, tmp_path, images=1, progress=False)
    expected = np.zeros((4, 2))
    for record in records:
        lens = logit_lens(vlm.model, vlm.processor, record["image"], QUESTIONS[0], words=["dog"])
        says = lens.says_word()
        expected += np.stack([says[:, 0, 0], (says.sum((1, 2)) - says[:, 0, 0]) / 8], axis=-1) / 3
    np.testing.assert_allclose(np.array([found["object"], found["rest"]]).T, expected)
    assert found["samples"] == 3 and found["pictures"] == ["r/0"]
    assert {path.name for path in (tmp_path / "logit_lens").iterdir()} == {"r_0.npz", "r_0-dog.png"}
    with pytest.raises(ValueError, match="no image for the logit lens"):
        study_lens(vlm.model, vlm.processor, [], tmp_path, progress=False)
