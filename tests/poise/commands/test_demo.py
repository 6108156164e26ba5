"""`poise demo`, short: every artefact is there and says the same."""

import json
import re

import pytest
from PIL import Image

from poise.commands.demo import main
from poise.evaluation.robustness.conditions import DEMO_CONDITIONS
from poise.hub_cards.publishing.run_folder import RunFolder


@pytest.mark.slow
def test_demo_leaves_a_report_results_and_a_publishable_model(tmp_path, capsys):
    assert main(["--output", str(tmp_path), "--steps", "12", "--samples", "10"]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == ["none", "reliability"]
    for rows in results["rows"].values():
        assert [row["condition"] for row in rows] == [condition.name for condition in DEMO_CONDITIONS]
        assert all(row["n"] == 10 and row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    for row in results["rows"]["none"]:
        assert row["condition"] in printed
    assert all(row["image_weight"] is not None for row in results["rows"]["reliability"])
    with Image.open(tmp_path / "report.png") as report:
        assert min(report.size) > 500
    published = tmp_path / "published"
    assert {"README.md", "model.safetensors", "modeling_poise.py", "recipe.yaml"} <= {
        p.name for p in published.iterdir()
    }
    assert printed.count("(right:") == 3
    # What it measured is on the card, with intervals, and is found again by `poise publish`.
    card = (published / "README.md").read_text()
    evaluation = card[card.index("<summary>Evaluation") : card.index("<summary>Dominance")]
    assert re.search(
        r"^\| VQA accuracy \| [01]\.\d{3} \[[01]\.\d{3}, [01]\.\d{3}\] \| 10 \|$", evaluation, flags=re.MULTILINE
    )
    tables, _, _ = RunFolder.find(tmp_path / "reliability").everything_for_the_card()
    assert len({row.condition for row in tables.robustness}) == len(DEMO_CONDITIONS) and tables.evaluation


@pytest.mark.parametrize("words", [["--samples", "0"], ["--steps", "0"]])
def test_numbers_that_ask_for_nothing_are_refused_at_once(words, tmp_path):
    with pytest.raises(ValueError, match=f"{words[0]} is 0"):
        main(["--output", str(tmp_path / "demo"), *words])
    assert not (tmp_path / "demo").exists()
