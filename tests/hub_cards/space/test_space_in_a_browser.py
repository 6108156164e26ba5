"""The Space's page in headless Chromium, against `python app.py` on this machine where Poise cannot be imported."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
# Emulated through the DevTools protocol: a window of Chromium cannot be narrower than 500 pixels.
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
CLEAN_PROCESS = Path(__file__).resolve().parents[3] / "hub_cards" / "publishing" / "clean_process.py"
# Loaded by Python before app.py: nothing called poise can be imported.
WITHOUT_POISE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("clean_process", {str(CLEAN_PROCESS)!r})
clean_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_process)
sys.meta_path.insert(0, clean_process.PoiseIsNotInstalled)
"""


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory):
    """The demo's model after two steps: tiny backbones, reliability router."""
    from poise.training.sft.recipe import load_recipe
    from poise.training.sft.stage import run_sft

    run = tmp_path_factory.mktemp("run")
    settings = {
        "model.router_type": "reliability",
        "data.scenes": {"size": 128, "tasks": ["vqa"], "question_types": ["color"]},
        "data.evaluation_samples": 4,
        "training.output_dir": str(run),
        "training.max_steps": 2,
        "training.disable_tqdm": True,
    }
    folder, _ = run_sft(load_recipe("demo", settings))
    return Path(folder)


@pytest.fixture(scope="module")
def browser():
    """Chromium under Playwright; the tests are skipped without one of them."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'poise[space]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class RunningSpace:
    """`python app.py` of a Space on a free port of this machine."""

    def __init__(self, folder: Path, scratch: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        (scratch / "sitecustomize.py").write_text(WITHOUT_POISE)
        environment = {
            **os.environ,
            "GRADIO_SERVER_PORT": self.address.rpartition(":")[2],
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(scratch / "gradio"),
            "HF_HOME": str(scratch / "home"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(scratch),
            "NO_PROXY": "127.0.0.1",
        }
        self.log = scratch / "space.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self, seconds: float = 400.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.address, timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"the Space did not start: {self.log.read_text()[-3000:]}")

    def __enter__(self):
        try:
            self.wait()
        except AssertionError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(20)


def said(page, pattern: str, kind: str) -> str:
    """Wait until the status line is of `kind` and says `pattern`."""
    locator = page.locator(f"#status .poise-status.{kind}", has_text=re.compile(pattern))
    locator.wait_for(timeout=240_000)
    return locator.inner_text()


@pytest.fixture
def open_page(browser):
    """`open_page(address)`: a page; afterwards nothing may have gone wrong in it."""
    pages, problems = [], []

    def opened(address, device=None):
        page = browser.new_page(**(device or {"viewport": {"width": 1280, "height": 900}}))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert problems == []


def test_a_visitor_asks(demo_model, open_page, tmp_path):
    from poise.hub_cards.space.answers import AnsweringModel
    from poise.hub_cards.space.folder import write_space

    write_space(tmp_path / "space", str(demo_model), title="Demo", max_new_tokens=4)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with RunningSpace(tmp_path / "space", scratch) as space:
        page = open_page(space.address)
        said(page, "Loading model|Ready", "busy" if page.locator("#status .busy").count() else "good")
        said(page, "Ready", "good")
        # What is missing is said where one looks.
        page.click("#ask")
        said(page, "There is no image yet", "bad")

        # An image of one's own, of another size; then a question, no tags.
        own = tmp_path / "own.png"
        Image.new("RGB", (300, 200), "red").save(own)
        page.set_input_files("#picture input[type=file]", own)
        page.locator("#proposals", has_text="No tagger was given").wait_for()
        page.click("#ask")
        said(page, "There is no question yet", "bad")
        page.fill("#question textarea, #question input", "what color is the square ?")
        page.click("#ask")
        said(page, "Answered", "good")
        assert "No tags were given" in page.inner_text("#answers")
        page.fill("#question textarea, #question input", "")
        page.click("#ask")
        said(page, "There is no question yet", "bad")
        page.locator("#answers .said.none").nth(2).wait_for()  # nothing is left of the answers before

        # An example brings image, question and tags.
        page.locator("#examples button.thumbnail-item").nth(1).click()
        settings = json.loads((tmp_path / "space" / "space.json").read_text())
        example = settings["examples"][1]
        page.wait_for_function(
            "wanted => document.querySelector('#question textarea, #question input').value === wanted",
            arg=example["question"],
        )
        page.locator("#tags [data-testid=cell-0-0]", has_text=example["tags"][0][0]).wait_for()
        page.click("#ask")
        page.wait_for_function("count => document.querySelectorAll('#answers .fill').length === count", arg=6)
        said(page, "Answered", "good")
        shown = [card.inner_text() for card in page.locator("#answers .said").all()]

        # The page says what the same code says here.
        model = AnsweringModel.of_folder(tmp_path / "space")
        model._load()
        with Image.open(tmp_path / "space" / example["image"]) as image:
            expected = model.answer(image, example["question"], example["tags"])
        assert shown == [run.text or "(the model said nothing)" for run in expected.runs]
        values = [float(value.inner_text()) for value in page.locator("#answers .value").all()]
        pairs = [weight for run in expected.runs for weight in (run.image_weight, run.tag_weight)]
        assert values == pytest.approx(pairs, abs=0.011)
        assert page.locator("#router figure img").count() == 3

        # The slider damages the image, and the answers follow without a click.
        shown = page.locator("#router figure img").first.get_attribute("src")
        page.locator("#severity input[type=range]").focus()
        page.keyboard.press("End")
        page.wait_for_function(
            "shown => { const one = document.querySelector('#router figure img'); return one && one.src !== shown; }",
            arg=shown,
        )
        said(page, "Answered", "good")

        # A score that is none, edited in the table.
        score = page.locator("#tags [data-testid=cell-0-1]")
        for _ in range(20):  # a busy browser opens the cell later than the keys come
            score.dblclick()
            page.keyboard.press("Control+A")
            page.keyboard.type("7")
            page.keyboard.press("Enter")
            page.wait_for_timeout(500)
            if score.inner_text().strip() in ("7", "7.0"):
                break
        page.click("#ask")
        said(page, "is 7.*a number from 0 to 1", "bad")
        page.locator("#answers .said.none").nth(2).wait_for()  # no answer to an earlier question is left

        walk_by_keyboard(page)
        on_a_phone(open_page(space.address, PHONE))


def walk_by_keyboard(page):
    """Tab reaches everything, in the order of the page, and shows where it is; Enter asks."""
    page.reload()
    said(page, "Ready", "good")
    reached, seen = [], []
    for _ in range(40):
        page.keyboard.press("Tab")
        place, visible = page.evaluate(
            """() => { const one = document.activeElement, style = getComputedStyle(one);
                const part = one.closest('#picture, #question, #tags, #damage, #severity, #ask, #examples');
                return [part && part.id, style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2]; }"""
        )
        if place is None:
            break
        reached += [place] if place not in reached else []
        seen.append(visible)
    assert reached == ["picture", "question", "tags", "damage", "severity", "ask", "examples"] and all(seen)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # the last example
    page.wait_for_function("document.querySelector('#question textarea, #question input').value !== ''")
    page.locator("#ask").focus()
    page.keyboard.press("Enter")
    said(page, "Answered", "good")
    without_violations(page)


def on_a_phone(page):
    """Nothing sticks out at 390 pixels, nor after the phone was turned to its side and back."""
    said(page, "Ready", "good")
    for width in (390, 844, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
    assert page.evaluate("[innerWidth, document.documentElement.clientWidth]") == [390, 390]
    without_violations(page)


def without_violations(page):
    """axe finds no violation of WCAG 2.2 A and AA."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page, options={"runOnly": WCAG})
    assert found.response["passes"], "axe checked nothing"
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found.response["violations"]] == []


def test_a_model_that_cannot_be_loaded_is_said_on_the_page(open_page, tmp_path):
    from poise.hub_cards.space.folder import write_space

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "no-such-type"}')
    write_space(tmp_path / "space", str(broken))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with RunningSpace(tmp_path / "space", scratch) as space:
        page = open_page(space.address)
        assert "could not be loaded" in said(page, "could not be loaded", "bad")
        assert page.locator("#ask").is_disabled()


@pytest.fixture
def tagger(tmp_path):
    """A dual encoder over the tiny backbones, untrained but calibrated: its tags are nonsense, and always the same."""
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderProcessor

    from poise.modeling import PoiseDualEncoder
    from poise.processing.taggers import DualEncoderTagger
    from poise.training.backbone_loading import tiny_backbone_path

    vision, text = tiny_backbone_path("vision"), tiny_backbone_path("tag_encoder")
    torch.manual_seed(0)
    model = PoiseDualEncoder.from_backbones(vision, text, embed_dim=16)
    processor = VisionTextDualEncoderProcessor(
        AutoImageProcessor.from_pretrained(vision), AutoTokenizer.from_pretrained(text)
    )
    names = ["red square", "blue star", "green ring", "yellow heart"]
    tagger = DualEncoderTagger(model, processor, names, ["a {}"], temperature=0.1, bias=0.0, threshold=0.0, max_tags=3)
    tagger.save_pretrained(tmp_path / "tagger")
    return tagger


def test_a_visitor_takes_over_what_the_tagger_proposes(demo_model, tagger, open_page, tmp_path):
    from poise.hub_cards.space.folder import write_space

    write_space(tmp_path / "space", str(demo_model), str(tmp_path / "tagger"), max_new_tokens=2)
    own = tmp_path / "own.png"
    Image.new("RGB", (60, 40), "green").save(own)
    (expected,) = tagger([Image.open(own).convert("RGB")])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with RunningSpace(tmp_path / "space", scratch) as space:
        page = open_page(space.address)
        said(page, "Ready", "good")
        assert page.locator("#take").is_hidden()
        page.set_input_files("#picture input[type=file]", own)
        page.locator("#proposals", has_text=expected[0].name).wait_for()
        proposals = page.inner_text("#proposals")
        assert all(f"{tag.name} {tag.score:.2f}" in " ".join(proposals.split()) for tag in expected)

        page.click("#take")
        for row, tag in enumerate(expected):
            page.locator(f"#tags [data-testid=cell-{row}-0]", has_text=tag.name).wait_for()
        page.fill("#question textarea, #question input", "what color is the square ?")
        page.click("#ask")
        said(page, "Answered", "good")
        assert "No tags were given" not in page.inner_text("#answers")
