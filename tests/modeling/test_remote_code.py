"""A saved folder is complete: a process that cannot import Poise loads it, and gives the same logits."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from tiny_models import LANGUAGES, Sample, batch_of, decoder_inputs, open_model

pytestmark = pytest.mark.numerics

SAMPLES = (Sample(), Sample(images=(2, 3), tags=(True, False)))

# Runs in a fresh interpreter whose import system refuses Poise. Reads inputs, writes what every Auto class gives.
SCRIPT = """
import sys

class NoPoise:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "poise":
            raise ModuleNotFoundError("Poise is not installed here")

sys.meta_path.insert(0, NoPoise())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

folder, inputs, results = sys.argv[1:]
inputs = torch.load(inputs)
found = {"config": type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__module__}
with torch.no_grad():
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModel):
        model = auto.from_pretrained(folder, trust_remote_code=True)
        output = model(**inputs)
        found[auto.__name__] = (type(model).__name__, type(model).__module__, output[0])
whole = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
prompt = {name: value for name, value in inputs.items() if not name.startswith("decoder")}
found["generated"] = whole.generate(**prompt, max_new_tokens=3, do_sample=False)
whole.save_pretrained(folder + "-again")
again = AutoModelForImageTextToText.from_pretrained(folder + "-again", trust_remote_code=True)
with torch.no_grad():
    found["again"] = again(**inputs).logits
assert not [name for name in sys.modules if name.partition(".")[0] == "poise"]
torch.save(found, results)
"""


def load_elsewhere(folder, inputs, tmp_path):
    """What the script found in a process without Poise and with an empty cache of remote code."""
    torch.save(inputs, tmp_path / "inputs.pt")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(script), str(folder), str(tmp_path / "inputs.pt"), str(tmp_path / "found.pt")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    return torch.load(tmp_path / "found.pt")


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_loads_without_the_package(language, tmp_path):
    model = open_model(
        language, router_type="reliability", tag_score_encoding="embedding",
        projector_type="aggregator", vision_feature_layer=[1, 2],
    )  # fmt: skip
    folder = tmp_path / "published"
    model.save_pretrained(folder)
    inputs = {**batch_of(model, SAMPLES, side="left", answers=False), **decoder_inputs(model, SAMPLES)}
    found = load_elsewhere(folder, inputs, tmp_path)
    with torch.no_grad():
        expected = model(**inputs)
        states = model.model(**inputs).last_hidden_state
    for auto in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        kind, module, logits = found[auto]
        assert kind == "PoiseForConditionalGeneration" and module.startswith("transformers_modules")
        assert torch.equal(logits, expected.logits)
    kind, module, hidden = found["AutoModel"]
    assert kind == ("PoiseEncoderDecoderModel" if language == "t5" else "PoiseModel") and torch.equal(hidden, states)
    assert found["config"].startswith("transformers_modules")
    prompt = {name: value for name, value in inputs.items() if not name.startswith("decoder")}
    assert torch.equal(found["generated"], model.generate(**prompt, max_new_tokens=3, do_sample=False))
    assert torch.equal(found["again"], expected.logits)  # and what it saves is complete again


def files_needed(folder, name):
    """The file and all that its relative imports lead to."""
    needed, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [
                f"{found}.py" for found in re.findall(r"^from \.(\w+) import", (folder / name).read_text(), re.M)
            ]
    return needed


def test_every_modeling_file_lies_flat_beside_the_weights(tmp_path, repository):
    """All of them, or none that another needs: relative imports are followed, nothing is left behind or nested."""
    open_model(router_type="reliability").save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.glob("*.py")}
    assert saved == files_needed(repository / "modeling", "modeling_poise.py")
    for name in saved:
        text = (tmp_path / name).read_text()
        assert text == (repository / "modeling" / name).read_text()
        for line in text.splitlines():
            if line.startswith("from ."):
                assert line.split()[1].removeprefix(".") + ".py" in saved, line
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    for reference in auto_map.values():
        assert reference.split(".")[0] + ".py" in saved and "--" not in reference
