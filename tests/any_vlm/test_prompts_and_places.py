"""Questions in the words of each model's own processor, and where on the image its tokens lie."""

from types import SimpleNamespace

import folders
import numpy as np
import pytest
import torch
from folders import small_image
from more_families import MORE
from tiny_families import FAMILIES, IMG

from poise.evaluation.probing import token_grids as tg
from poise.evaluation.probing.answers import answer_log_probabilities, greedy_answers
from poise.evaluation.probing.parts import model_parts
from poise.evaluation.probing.prompt_batch import PromptBatch
from poise.evaluation.probing.prompt_reading import read_prompts
from poise.evaluation.probing.token_grids import _whole_image_grids, grid_shape, tile_regions, token_grids

pytestmark = pytest.mark.numerics

QUESTIONS = ("what color is the star ?", "what is this ?")
IMAGES = (small_image(40, 30), small_image(60, 30, seed=1))
WIDE = (0, 0, 60, 30)


@pytest.fixture(scope="module", params=list(folders.PROCESSORS))
def asked(request):
    """(name, processor, two prompts of unequal length about two images of unequal size)."""
    model, processor = folders.model(request.param), folders.processor(request.param)
    return request.param, processor, read_prompts(model_parts(model), processor, IMAGES, QUESTIONS)


def test_the_questions_words_are_found(asked):
    _, processor, prompts = asked
    for row, question in enumerate(QUESTIONS):
        words = prompts.input_ids[row][prompts.question_words[row]]
        assert processor.tokenizer.decode(words).split() == question.split()


def test_tags_are_words_before_the_question(asked):
    _, processor, prompts = asked
    tags = [[("blue star", 0.4), ("dog", 0.9)], []]
    told = read_prompts(prompts.parts, processor, IMAGES, QUESTIONS, tags)
    words = [told.input_ids[row][told.tag_words[row]] for row in range(2)]
    expected = processor.tokenizer("The image shows: dog, blue star.", add_special_tokens=False)["input_ids"]
    assert words[0].tolist() == expected
    assert words[1].tolist() == [] and prompts.tag_words is None
    for row in range(2):  # and the question is what it was
        asked_words = told.input_ids[row][told.question_words[row]]
        assert asked_words.tolist() == prompts.input_ids[row][prompts.question_words[row]].tolist()


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_batch(asked):
    _, processor, prompts = asked
    answers = [[11, 12], [13, 14]]
    together = answer_log_probabilities(prompts, answers)
    for row in range(2):
        alone = read_prompts(prompts.parts, processor, [IMAGES[row]], [QUESTIONS[row]])
        value = answer_log_probabilities(alone, [answers[row]])[0]
        torch.testing.assert_close(together[row], value, rtol=1e-4, atol=1e-4)
        assert greedy_answers(alone, max_new_tokens=3)[0] == greedy_answers(prompts, max_new_tokens=3)[row]


GRIDS = {  # of the wide image: shapes of the grids, and the part of it that each covers
    "llava": [((2, 2), (15, 0, 45, 30))],  # a square from its middle
    "llava_next": [((2, 2), WIDE), ((2, 4), WIDE)],
    "idefics3": [((2, 2), (0, 0, 30, 30)), ((2, 2), (30, 0, 60, 30)), ((2, 2), WIDE)],
    "gemma3": [((2, 2), WIDE)],
    "paligemma": [((2, 2), WIDE)],
}


def grid_inputs(name):
    """A model and inputs of two prompts whose images have other sizes, as rows of merged patches tell."""
    model, one = {**FAMILIES, **MORE}[name]()
    words = lambda count, padding: [0] * padding + [5, 6, *[IMG] * count, 7, 8]  # noqa: E731
    ids = torch.tensor([words(4, 4), words(8, 0)])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if name == "lfm2_vl":
        mask = torch.zeros(2, 32, dtype=torch.long)
        mask[0, :16], mask[1] = 1, 1
        shapes = torch.tensor([[4, 4], [4, 8]])
        return model, {**inputs, "pixel_values": torch.randn(2, 32, 147), "pixel_attention_mask": mask,
                       "spatial_shapes": shapes}  # fmt: skip
    pixels = torch.randn(16 + 32, one["pixel_values"].shape[1])
    types = {"mm_token_type_ids": (ids == IMG).int()} if "mm_token_type_ids" in one else {}
    return model, {**inputs, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 8]]), **types}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v", "lfm2_vl"])
def test_grids_follow_from_the_patches_that_the_inputs_tell_of(name):
    model, inputs = grid_inputs(name)
    prompts = PromptBatch(model_parts(model.eval()), inputs)
    assert len(prompts.features.rows) == 12  # the model reads them so
    shapes = []
    for row, image in enumerate((small_image(40, 40), small_image(60, 30))):
        (grid,) = token_grids(prompts, row, image, None)
        shapes.append(grid.tokens.shape)
        assert grid.region == (0, 0, *image.size) and grid.tokens.ravel().tolist() == list(range(grid.tokens.size))
    assert shapes == [(2, 2), (2, 4)]
    wrong = PromptBatch(prompts.parts, {**inputs, "image_grid_thw": None, "spatial_shapes": None})
    with pytest.raises(ValueError, match="fit no grid that its inputs tell of"):
        token_grids(wrong, 0, small_image(40, 40), None)


def test_tokens_lie_where_the_processor_puts_them(asked):
    name, processor, prompts = asked
    if name not in GRIDS:
        with pytest.raises(ValueError, match="has no patch grid: ") as error:
            token_grids(prompts, 1, IMAGES[1], processor.image_processor)
        assert "\n" not in str(error.value)
        return
    grids = token_grids(prompts, 1, IMAGES[1], processor.image_processor)
    assert [grid.tokens.shape for grid in grids] == [shape for shape, _ in GRIDS[name]]
    for grid, (_, region) in zip(grids, GRIDS[name], strict=True):
        np.testing.assert_allclose(grid.region, region, atol=0.3)  # colours of 8 bits spell the coordinates
        assert grid.boxes().shape == (*grid.tokens.shape, 4)
        np.testing.assert_allclose(grid.boxes()[0, 0, :2], grid.region[:2])
        np.testing.assert_allclose(grid.boxes()[-1, -1, 2:], grid.region[2:])
    places = np.concatenate([grid.tokens.ravel() for grid in grids])
    assert len(set(places)) == len(places) and places.max() < int(prompts.image[1].sum())


def test_the_numbers_of_a_tiled_image_follow_its_rows():
    """LLaVA-NeXT ends each row of its detailed view in a newline, which lies nowhere."""
    model, processor = folders.model("llava_next"), folders.processor("llava_next")
    prompts = read_prompts(model_parts(model), processor, IMAGES[1:], QUESTIONS[1:])
    _, detail = token_grids(prompts, 0, IMAGES[1], processor.image_processor)
    assert detail.tokens.tolist() == [[4, 5, 6, 7], [9, 10, 11, 12]]


def test_padding_is_measured_too():
    """A processor that pads to a square shows the image in a band of it."""
    from transformers import LlavaImageProcessor

    square = LlavaImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_pad=True)
    (region,) = tile_regions(square, IMAGES[1])
    np.testing.assert_allclose(region, (0, -15, 60, 45), atol=1.5)


def test_where_nothing_tells_the_place_it_is_the_whole_image(monkeypatch):
    monkeypatch.setattr(tg, "_exact_region", lambda *given: None)
    monkeypatch.setattr(tg, "tile_regions", lambda *given: None)
    assert tg.ImageGrids(None).regions(IMAGES[1]) == [(0.0, 0.0, 60.0, 30.0)]


def test_shapes_of_grids():
    assert grid_shape(12, 30, 40) == (3, 4)
    assert grid_shape(16, 28, 28) == (4, 4)
    assert grid_shape(17, 28, 28) is None  # a prime number of tokens is no square


def test_a_foreign_processor_is_refused_in_one_line():
    parts = model_parts(folders.model("llava"))
    processor = folders.processor("llava")
    processor.tokenizer.add_tokens(["star?"])
    with pytest.raises(ValueError, match="writes the token 120, but the model knows 120 words: use the processor"):
        read_prompts(parts, processor, IMAGES[:1], ["star?"])
    with pytest.raises(ValueError, match="cannot read what its processor makes of an image"):
        read_prompts(parts, folders.processor("idefics3"), IMAGES[:1], QUESTIONS[:1]).features  # noqa: B018


class Prompts:
    """Two prompts of which nothing is known but what their inputs say of the images' sizes."""

    parts = SimpleNamespace(family="any")

    def __init__(self, **inputs):
        self.inputs = {name: torch.tensor(value) for name, value in inputs.items()}

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    "inputs",
    [
        {"image_grid_thw": [[1, 8, 4], [1, 4, 12]]},
        {"spatial_shapes": [[8, 4], [4, 12]]},
        {"image_position_ids": [[[3, 7], [0, 0]], [[11, 0], [2, 3]]]},  # (column, row) of each patch
    ],
    ids=lambda inputs: next(iter(inputs)),
)
def test_patches_of_which_four_became_a_token(inputs):
    assert _whole_image_grids(Prompts(**inputs), 1, 12) == [(0, 2, 6, 6)]
    assert _whole_image_grids(Prompts(**inputs), 0, 8) == [(0, 4, 2, 2)]
    assert _whole_image_grids(Prompts(**inputs), 1, 11) is None  # tokens that no such grid has


def test_sizes_of_tiles_are_not_those_of_images():
    assert _whole_image_grids(Prompts(spatial_shapes=[[4, 12]] * 3), 1, 12) is None
    assert _whole_image_grids(Prompts(), 1, 12) is None
