"""Checkpoints that earlier minor versions wrote load and answer as they did then."""

import json
from pathlib import Path

import pytest
import torch
from freeze_checkpoint import FOLDER, behaviour

from poise.modeling import PoiseForConditionalGeneration
from poise.processing import PoiseProcessor

CHECKPOINTS = sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []


def test_there_is_a_witness():
    assert CHECKPOINTS


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_an_earlier_checkpoint_answers_as_it_did(folder: Path):
    model, report = PoiseForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    found = behaviour(model.eval(), PoiseProcessor.from_pretrained(folder))
    expected = json.loads((folder / "expected.json").read_text())
    assert found["input_ids"] == expected["input_ids"] and found["tag_input_ids"] == expected["tag_input_ids"]
    assert found["pixel_sum"] == pytest.approx(expected["pixel_sum"], rel=1e-5)
    assert torch.allclose(torch.tensor(found["logits"]), torch.tensor(expected["logits"]), atol=1e-4)
    assert torch.allclose(torch.tensor(found["router_weights"]), torch.tensor(expected["router_weights"]), atol=1e-4)
    assert found["tokens"] == expected["tokens"]


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_a_witness_is_small_and_holds_no_code(folder: Path):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 300_000
    assert not list(folder.rglob("*.py"))
