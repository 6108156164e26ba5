"""The Space: what `poise space` writes, and what its page asks the model and draws, without a browser."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import SpaceCard
from PIL import Image

from poise.hub_cards.publishing.self_check import clean_environment
from poise.hub_cards.space.answers import DAMAGES, RUNS, Answer, AnsweringModel, check_tags, damaged, read_image
from poise.hub_cards.space.drawing import answer_cards, proposed_tags, router_overlay, router_view, status
from poise.hub_cards.space.folder import check_source, words_of_card, write_space
from poise.processing import Scenes

QUESTION = "what color is the square ?"
TAGS = [["red square", 0.9], ["dog", 0.2]]


@pytest.fixture(scope="module")
def space(built, tmp_path_factory):
    """A Space around the built model."""
    folder = tmp_path_factory.mktemp("space") / "out"
    return folder, write_space(folder, str(built.folder), title="Tiny <b>", max_new_tokens=3)


@pytest.fixture(scope="module")
def answering(space):
    model = AnsweringModel.of_folder(space[0])
    model.start_loading()
    assert model.ready.wait(120) and model.problem is None
    return model


@pytest.fixture(scope="module")
def scene():
    return Scenes("test", size=1)[0]["image"]


def test_the_folder_is_a_space_that_names_everything_it_needs(space, built):
    folder, written = space
    assert {"README.md", "app.py", "requirements.txt", "space.json", "examples/scene_0.png"} <= set(written)
    card = SpaceCard.load(folder / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("gradio", "app.py", "Tiny <b>")
    assert "models" not in card.data.to_dict()  # a folder of this machine is not named
    needed = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert {"transformers", "torch", "pillow"} <= set(needed) and all(needed.values())
    settings = json.loads((folder / "space.json").read_text())
    assert settings["model"] == str(built.folder) and settings["tagger"] is None
    for example in settings["examples"]:
        with Image.open(folder / example["image"]) as image:
            assert image.size == (48, 48)
        assert example["question"].endswith("?") and check_tags(example["tags"]) == example["tags"]


def test_code_of_a_space_needs_neither_poise_nor_gradio_to_be_read(space):
    folder, written = space
    for name in written:
        if name.endswith(".py"):
            tree = ast.parse((folder / name).read_text())
            names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
            names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            assert not [one for one in names if one.split(".")[0] == "poise"], name


def test_a_published_model_and_its_tagger_are_named_on_the_card(tmp_path):
    write_space(tmp_path / "out", "user/name", "user/tagger")
    data = SpaceCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert data["models"] == ["user/name", "user/tagger"] and data["title"] == "name"
    assert (tmp_path / "out" / "tagger" / "taggers.py").is_file()
    write_space(tmp_path / "out", "user/name")  # again, without the tagger
    assert not (tmp_path / "out" / "tagger").exists()


def test_the_taggers_code_runs_without_poise(tmp_path):
    write_space(tmp_path / "out", "user/name", "user/tagger")
    code = (
        "import sys; sys.modules['poise'] = None\n"
        "from tagger.taggers import DualEncoderTagger\nprint(DualEncoderTagger.__module__)"
    )
    environment = {**clean_environment(tmp_path, with_cache=False), "PYTHONPATH": str(tmp_path / "out")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == "tagger.taggers", done.stderr[-2000:]


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/b/c", "/nowhere/at all", ""])
def test_a_model_that_is_nothing_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="--model"):
        write_space(tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_or_tagger_is_refused(tmp_path, built):
    with pytest.raises(ValueError, match="--model .* without config.json"):
        check_source(str(tmp_path), "--model", "config.json")
    with pytest.raises(ValueError, match="--tagger .* without tagger.json"):
        write_space(tmp_path / "out", str(built.folder), str(built.folder))


def test_something_else_is_not_written_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="no Space"):
        write_space(tmp_path, "user/name")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "rows, said",
    [
        ([["dog", "often"]], "score of “dog” is 'often'"),
        ([["dog", 1.5]], "a number from 0 to 1"),
        ([["dog", float("nan")]], "a number from 0 to 1"),
        ([["dog", None]], "score of “dog”"),
        ([["", 0.4]], "Tag 1 has a score but no name"),
        ([[f"tag {number}", 0.5] for number in range(65)], "at most 64"),
    ],
)
def test_slips_in_the_table_of_tags_are_said(rows, said):
    with pytest.raises(ValueError, match=said):
        check_tags(rows)


def test_empty_rows_are_no_tags():
    assert check_tags([["", ""], [None, None], ["", float("nan")], [" red  square ", "0,9"]]) == [["red square", 0.9]]


def test_three_answers_are_those_of_the_model(answering, scene, built):
    """Each column is what the model says when it is asked alone with that column's input."""
    answers = answering.answer(scene, QUESTION, TAGS)
    assert [run.title for run in answers.runs] == [title for title, _, _ in RUNS]
    assert answers.runs[2].tag_weight == 0  # no tags
    for run, (_, sees_image, sees_tags) in zip(answers.runs, RUNS, strict=True):
        image = scene if sees_image else answering._grey(scene)
        conversation = answering._conversation(image, QUESTION, TAGS if sees_tags else [])
        texts, weights, _ = answering._run([conversation])
        assert run.text == texts[0] and weights[0] == pytest.approx([run.image_weight, run.tag_weight], abs=2e-4)
    assert len(answers.gaze) == len(answers.gaze[0]) == 2  # 16-pixel image, patches of 8
    assert sum(map(sum, answers.gaze)) == pytest.approx(1, abs=1e-5)


def test_grey_is_what_the_tower_reads_as_nothing(answering, scene):
    pixels = answering.processor.image_processor(answering._grey(scene), return_tensors="pt")["pixel_values"]
    assert pixels.abs().max() < 0.01


@pytest.mark.parametrize(
    "image, question, said",
    [(False, QUESTION, "no image yet"), (True, " ", "no question yet"), (True, "x" * 501, "at most 500")],
)
def test_what_is_missing_is_said(answering, scene, image, question, said):
    with pytest.raises(ValueError, match=said):
        answering.answer(scene if image else None, question, [])


def test_without_a_tagger_it_says_so(answering, scene):
    with pytest.raises(ValueError, match="No tagger was given"):
        answering.propose(scene)


def test_a_model_that_cannot_be_loaded_says_why(tmp_path, scene):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    model = AnsweringModel({"model": str(tmp_path), "tagger": None})
    with pytest.raises(ValueError, match="still loading"):
        model.answer(scene, QUESTION, [])
    model.start_loading()
    assert model.ready.wait(60) and model.problem
    with pytest.raises(ValueError) as failed:
        model.answer(scene, QUESTION, [])
    assert str(failed.value) == model.problem and "\n" not in model.problem


def test_other_routers_and_language_models_answer(backbones, tmp_path, scene):
    """A gate has weights but no gaze, no router has neither."""
    from folder_models import build

    for router, has_weights in (("gate", True), ("none", False)):
        model, processor = build(backbones, router_type=router)
        answering = AnsweringModel({"model": router, "tagger": None, "max_new_tokens": 2})
        answering.model, answering.processor = model.eval(), processor
        answers = answering.answer(scene, QUESTION, TAGS)
        assert (answers.runs[0].image_weight is not None) is has_weights and answers.gaze is None
        drawn = router_view(scene, answers)
        assert ("no information router" in drawn) is not has_weights


def test_what_a_model_says_is_text_and_not_html(answering, scene):
    answers = answering.answer(scene, QUESTION, [])
    hostile = [type(run)(run.title, "<script>alert(1)</script>", 0.2, 0.9) for run in answers.runs]
    page = answer_cards([title for title, _, _ in RUNS], hostile, has_tags=False)
    page += proposed_tags([["<img src=x onerror=alert(1)>", 0.5]]) + status("bad", "<u>")
    assert "<script" not in page and "<img" not in page and "<u>" not in page
    assert page.count("&lt;script&gt;") == 3 and "No tags were given" in page and "width:20.0%" in page


def test_a_distrusted_image_fades_and_the_gaze_glows():
    red = Image.new("RGB", (12, 6), (200, 0, 0))
    assert router_overlay(red, 1.0, None).getpixel((3, 3)) == (200, 0, 0)
    assert router_overlay(red, 0.0, None).getpixel((3, 3)) == (128, 128, 128)
    looked = router_overlay(red, 1.0, [[0.0, 0.0], [0.0, 1.0]])
    assert looked.size == (360, 180)
    assert looked.getpixel((350, 170))[1] > 50 and looked.getpixel((5, 5)) == (200, 0, 0)


def test_an_upload_is_checked_before_it_is_decoded_and_can_be_damaged(space, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(space[0]))  # where `images` lies
    Image.new("1", (13_000, 13_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 60_000
    (tmp_path / "notes.png").write_text("no image")
    for name, said in (("bomb.png", "The image is 13000×13000 = 169 megapixels"), ("notes.png", "The image is not")):
        with pytest.raises(ValueError, match=said) as refused:
            read_image(str(tmp_path / name))
        assert str(tmp_path) not in str(refused.value)
    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "wide.png")
    image = read_image(str(tmp_path / "wide.png"))
    assert image.size == (1536, 384)
    for kind in DAMAGES:
        assert damaged(image, kind, 0) is image
        once = damaged(image, kind, 5)
        assert once.size == image.size and once.tobytes() == damaged(image, kind, 5).tobytes()
    assert damaged(image, "noise", 3).tobytes() != image.tobytes() != damaged(image, "darkness", 3).tobytes()


def test_a_switched_off_image_is_called_what_it_is():
    runs = [Answer(title, "red", 0.9, 0.1, image, tags) for title, image, tags in RUNS]
    both, tags_only, image_only = answer_cards([title for title, _, _ in RUNS], runs).split("<h3>")[1:]
    assert "<span>grey image</span>" in tags_only and "<span>tags</span>" in tags_only
    assert "<span>image</span>" in both and "<span>tags</span>" in both
    assert "<span>image</span>" in image_only and "<span>no tags</span>" in image_only


def test_title_and_text_come_from_the_models_card(built, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(built.folder, model)
    assert words_of_card(str(model)) == {}
    text = "---\nlicense: mit\n---\n# A \\*fine\\* model\n\nWhat it is,\nin two lines.\n\n* a list\n\n"
    (model / "README.md").write_text(text + "## What it must not be used for\n\n* Photographs: no.\n* More.\n")
    expected = {"title": "A *fine* model", "sentence": "What it is, in two lines.", "caution": "Photographs: no."}
    assert words_of_card(str(model)) == expected
    write_space(tmp_path / "out", str(model))
    settings = json.loads((tmp_path / "out" / "space.json").read_text())
    assert {name: settings[name] for name in expected} == expected
    write_space(tmp_path / "out", str(model), title="Mine")
    assert json.loads((tmp_path / "out" / "space.json").read_text())["title"] == "Mine"


def test_the_page_fetches_no_address(space):
    code = (
        "import app, asyncio; app.refuse_addresses()\nfrom gradio import processing_utils as p\n"
        "for call in (lambda: p.save_url_to_cache('http://127.0.0.1:9/a', '.'),\n"
        "             lambda: asyncio.run(p.async_ssrf_protected_download('http://127.0.0.1:9/a', '.'))):\n"
        "    try: call()\n    except ValueError as error: print(error)\n"
    )
    pytest.importorskip("gradio")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=space[0])
    assert done.stdout.count("fetches no addresses") == 2, done.stderr[-2000:]
