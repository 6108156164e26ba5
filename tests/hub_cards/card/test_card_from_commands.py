"""The commands in a row, as a user types them: train, measure three ways, publish; and what the card then says."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from poise.command_line import main

pytestmark = pytest.mark.slow
SCENES = "{size: 128, tasks: [vqa], question_types: [color]}"
COMMANDS = (
    ["sft", "--config", "demo", "--router_type", "reliability", "--max_steps", "3", "--data.scenes", SCENES]
    + ["--data.evaluation_samples", "4", "--output_dir", "run", "--logging_steps", "1", "--disable_tqdm", "true"],
    ["evaluate", "run", "--data", "scenes:test", "--task", "vqa", "--samples", "16"],
    ["evaluate", "run/model", "--data", "scenes:prior_broken", "--task", "vqa", "--samples", "16"],
    ["robustness", "run", "--samples", "8", "--severities", "3", "--degradations", "noise", "tags_removed"],
    ["diagnose", "run", "--samples", "8"],
    ["publish", "run", "--repo", "user/name", "--dry-run"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the last of the commands wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("commands"))
        for words in COMMANDS:
            assert main(words) == 0, words
        assert not Path("outputs").exists()  # everything is where publish looks
        yield Path("run/published").resolve()


@pytest.fixture
def card(folder):
    return ModelCard.load(folder / "README.md")


def section(card: ModelCard, title: str) -> str:
    pattern = rf"^(?:## |<summary>){title}(?:</summary>)?\n(.*?)(?=^## |^</details>|\Z)"
    return re.search(pattern, card.text, flags=re.MULTILINE | re.DOTALL)[1]


def test_evaluation_has_a_line_with_an_interval_for_each_data_set(card):
    text = section(card, "Evaluation")
    for data in ("scenes:prior_broken", "scenes:test"):
        assert re.search(
            rf"^\| {data} \| VQA accuracy \| 0\.\d{{3}} \[0\.\d{{3}}, [01]\.\d{{3}}\] ", text, flags=re.MULTILINE
        ), text


def test_the_index_holds_the_same_figures(card):
    found = {(one.dataset_type, one.dataset_split): one for one in card.data.eval_results}
    assert set(found) == {("scenes", "test"), ("scenes", "prior_broken")}
    for (_, split), result in found.items():
        value = re.search(rf"\| scenes:{split} \| VQA accuracy \| (0\.\d+)", section(card, "Evaluation"))[1]
        assert float(value) == pytest.approx(result.metric_value, abs=5e-4) and result.metric_type == "accuracy"


def test_failing_modalities_and_dominance_have_an_image_and_a_table(card, folder):
    failing, dominance = section(card, "How it holds up"), section(card, "Dominance")
    for text, plot, lines in (
        (failing, "robustness", ["clean", "noise", "tags removed"]),
        (dominance, "dominance", ["everything right", "image swapped", "attention"]),
    ):
        assert f"(plots/{plot}.png)" in text
        with Image.open(folder / "plots" / f"{plot}.png") as image:
            assert min(image.size) > 500
        for line in lines:
            assert re.search(rf"^\| {line} \|.*\[-?\d\.\d{{3}}, ", text, flags=re.MULTILINE), (line, text)
    assert "router's weight of the tags" in dominance and "Accuracy is" in dominance  # the verdict in words


def test_no_section_is_empty_and_nothing_is_left_of_the_template(card):
    for title in re.findall(r"^(?:## (?!Details)|<summary>)(.*?)(?:</summary>)?$", card.text, flags=re.MULTILINE):
        assert len(section(card, title).strip()) > 30, title
    assert not re.search(r"\bNone\b|\bnan\b|\{\{|\{%|\n\n\n\n", card.text)
