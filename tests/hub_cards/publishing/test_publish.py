"""`poise publish` through the loopback Hub with the real client, and what somebody without Poise gets from there."""

import io
import json
import os
import re
import shutil
import signal

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from loopback_hub import READ_TOKEN, WRITE_TOKEN
from PIL import Image
from without_poise import without_poise

from poise import command_line
from poise.commands.publish import main
from poise.hub_cards.card.data import CARD_DATA_FILE, CardData, EvaluationRow
from poise.hub_cards.publishing import publishable_folder
from poise.hub_cards.publishing.self_check import SelfCheckError

pytestmark = pytest.mark.numerics


@pytest.fixture
def run(built, tmp_path):
    """A run's folder as training leaves it: the finished model and what the callback collected."""
    run = tmp_path / "run"
    shutil.copytree(built.folder, run / "model")
    rows = [EvaluationRow("clean", "vqa_accuracy", 0.9, 0.85, 0.93, 300, "scenes")]
    CardData(evaluation=rows, robustness=rows, parameters={"new_modules": 10, "total": 100}).save(run / CARD_DATA_FILE)
    (run / "model" / "recipe.yaml").write_text("model: {router_type: reliability}\ntraining: {hub_token: hf_secret}\n")
    return run


@pytest.fixture
def unchecked(monkeypatch):
    """Stands in for the self-check, which takes a process of its own."""
    monkeypatch.setattr(publishable_folder, "check_loads_without_poise", lambda *args, **kwargs: ["red"])


def logits_here(built, sample):
    content = [
        {"type": "image", "image": sample["image"], "tags": sample["tags"]},
        {"type": "text", "text": sample["question"]},
    ]
    inputs = built.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return built.model(**inputs).logits


def snippet_of(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]


def test_published_model_gives_the_same_logits_and_its_card_runs(online, built, run, samples, tmp_path, capsys):
    assert main([str(run), "--repo", "user/name", "--license", "apache-2.0"]) == 0
    assert capsys.readouterr().out.startswith(f"{online.endpoint}/user/name/commit/")
    repository = online.repositories["user/name"]
    card = repository.main["README.md"].content.decode()
    answered = json.loads(repository.main["sample.json"].content)["answer"]

    loaded = without_poise(online, tmp_path, "user/name", samples[0], snippet=snippet_of(card))
    assert isinstance(loaded, tuple), loaded
    logits, printed = loaded
    assert torch.equal(logits, logits_here(built, samples[0]))
    assert printed == answered
    assert f"**{answered or '(nothing)'}**" in card


def test_no_token_is_in_anything_that_a_publish_writes(online, run, tmp_path, unchecked, capfd):
    assert main([str(run), "--repo", "user/name"]) == 0
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != run / "model" / "recipe.yaml":
            content = path.read_bytes()
            assert WRITE_TOKEN.encode() not in content, path
            assert b"hf_secret" not in content, path
    for file in online.repositories["user/name"].main.values():
        assert WRITE_TOKEN.encode() not in file.content
    printed = capfd.readouterr()
    assert WRITE_TOKEN not in printed.out + printed.err


def test_sigterm_while_the_weights_are_sent_says_what_the_repository_holds(
    online, run, unchecked, monkeypatch, capsys, tmp_path
):
    def stopped(self, repository, operations, **kwargs):
        self.preupload_lfs_files(repository, [one for one in operations if hasattr(one, "path_or_fileobj")])
        os.kill(os.getpid(), signal.SIGTERM)

    words = ["publish", str(run), "--repo", "user/name"]
    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", stopped)
        assert command_line.main(words) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poise ")]
    assert line == (
        "poise publish: stopped by SIGTERM while user/name was uploaded: it holds all of the commit or none of it; "
        f"{run / 'published'} is complete, and the same command goes on where it was"
    )
    assert online.repositories["user/name"].main == {}
    assert {path.name for path in run.iterdir()} == {"model", "card_data.json", "published"}
    online.requests.clear()
    assert command_line.main(words) == 0
    assert "model.safetensors" in online.repositories["user/name"].main
    assert not [path for method, path in online.requests if method == "PUT" and "/lfs/" in path]  # not sent twice


def test_dry_run_lists_and_uploads_nothing(online, run, capsys, unchecked):
    assert main([str(run), "--repo", "user/name", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    for name in ("README.md", "model.safetensors", "modeling_poise.py", "sample.png", "recipe.yaml"):
        assert re.search(rf"^ *[\d,]+  {re.escape(name)}$", listed, flags=re.MULTILINE)
    assert online.requests == [] and (run / "published" / "README.md").is_file()
    assert "loaded without Poise, and answered its sample; nothing was uploaded: leave out --dry-run" in listed
    with pytest.raises(ValueError, match="is a published folder already"):
        main([str(run / "published"), "--repo", "user/name", "--dry-run"])


def test_nothing_is_uploaded_when_the_self_check_fails(online, run, monkeypatch):
    def fails(*args, **kwargs):
        raise SelfCheckError("self-check failed: this and that")

    monkeypatch.setattr(publishable_folder, "check_loads_without_poise", fails)
    with pytest.raises(SelfCheckError, match="this and that"):
        main([str(run), "--repo", "user/name"])
    assert not online.repositories and online.count("POST", ".") == 0


def test_card_of_a_published_run(online, run, tmp_path, unchecked):
    online.repositories.clear()
    scores = tmp_path / "metrics.json"
    scores.write_text(json.dumps({"data": "vqa.jsonl", "metrics": {"vqa_accuracy": 0.5, "vqa_samples": 10}}))
    assert main([str(run), "--repo", "user/name", "--evaluation", str(scores), "--license", "mit"]) == 0
    card = ModelCard(online.repositories["user/name"].main["README.md"].content.decode())
    assert [result.metric_value for result in card.data.eval_results] == [0.9, 0.5]
    assert card.data.license == "mit" and card.data.base_model == ["acme/words", "acme/tower", "acme/tags"]
    assert "10 of 100 (new_modules 10)" in card.text


def test_licences_of_backbones_are_looked_up(online, run, unchecked):
    from loopback_hub import File, Repository

    described = Repository("acme", private=False)
    described.commit("main", "card", {"README.md": File(b"---\nlicense: mit\n---\n", False)}, None)
    online.repositories["acme/tower"] = described
    assert main([str(run), "--repo", "user/name"]) == 0
    card = online.repositories["user/name"].main["README.md"].content.decode()
    assert "| `acme/tower` | mit |" in card and "| `acme/words` | see its own card |" in card


@pytest.mark.slow
def test_private_repository_needs_a_token_and_says_so(online, built, run, samples, tmp_path, unchecked):
    assert main([str(run), "--repo", "user/name", "--private"]) == 0
    refused = without_poise(online, tmp_path, "user/name", samples[0])
    assert isinstance(refused, str)
    assert re.search("gated|private|token|not a valid model identifier", refused.splitlines()[-1] + refused)
    logits, _ = without_poise(online, tmp_path, "user/name", samples[0], token=READ_TOKEN)
    assert torch.equal(logits, logits_here(built, samples[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo", "name"], "is no name of a Hub repository"),
        (["--repo", "user/name", "--adapter-only"], "has no checkpoint with adapters"),
        (["--repo", "user/name", "--evaluation", "nothing.json"], "nothing.json"),
        (["--repo", "user/name", "--max-shard-size", "big"], "--max-shard-size 'big'.*write 5GB"),
    ],
)
def test_slips_are_found_before_anything_is_loaded(run, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        main([str(run), *arguments])


def test_a_folder_without_a_run_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds neither a finished model nor a checkpoint"):
        main([str(tmp_path), "--repo", "user/name"])
    with pytest.raises(ValueError, match="is no folder"):
        main([str(tmp_path / "nothing"), "--repo", "user/name"])


def measure(run):
    """What `poise evaluate`, `robustness` and `diagnose` leave behind, in the form of `evaluation/*_command.py`."""
    (run / "evaluation" / "vqa-vqa").mkdir(parents=True)
    scores = {"vqa_accuracy": 0.7, "vqa_accuracy_low": 0.6, "vqa_accuracy_high": 0.8, "vqa_samples": 20}
    (run / "evaluation" / "vqa-vqa" / "metrics.json").write_text(json.dumps({"data": "vqa.jsonl", "metrics": scores}))
    row = {"metric": "vqa_accuracy", "value": 0.5, "n": 20, "low": 0.4, "high": 0.6, "dataset": "scenes"}
    found = {
        "robustness": {"scores": {"samples": 20}, "robustness": [{"condition": "noise", **row}]},
        "diagnosis": {"verdict": ["It follows the image."], "dominance": [{"condition": "tags swapped", **row}]},
    }
    for name, content in found.items():
        (run / name).mkdir()
        (run / name / f"{name}.json").write_text(json.dumps(content))
        Image.new("RGB", (8, 8), "blue").save(run / name / f"{name}.png")


def test_what_was_measured_beside_the_run_is_on_the_card(online, run, unchecked):
    measure(run)
    assert main([str(run), "--repo", "user/name"]) == 0
    files = online.repositories["user/name"].main
    card = files["README.md"].content.decode()
    assert "| vqa.jsonl | VQA accuracy | 0.700 [0.600, 0.800] | 20 |" in card
    assert re.search(r"^\| noise \| 0.500 \[0.400, 0.600\] \|.* 20 \|$", card, flags=re.MULTILINE)
    assert "It follows the image." in card and re.search(
        r"^\| tags swapped \|.*\| 0.500 \[0.400, 0.600\] \| 20 \|$", card, re.MULTILINE
    )
    for name in ("robustness", "dominance"):
        assert f"(plots/{name}.png)" in card
        with Image.open(io.BytesIO(files[f"plots/{name}.png"].content)) as image:
            assert image.size == (8, 8) and image.getpixel((0, 0)) == (0, 0, 255)


def test_what_was_measured_on_an_earlier_model_is_left_out(run, caplog):
    from poise.hub_cards.publishing.run_folder import RunFolder

    measure(run)
    os.utime(run / "diagnosis" / "diagnosis.json", (0, 0))
    card_data, _, figures = RunFolder.find(run).everything_for_the_card()
    assert set(figures) == {"robustness"} and not card_data.dominance and not card_data.verdict
    assert "diagnosis.json is older than the weights" in caplog.text


def test_what_was_measured_on_the_finished_model_says_nothing_of_a_checkpoint(run, caplog):
    from poise.hub_cards.publishing.run_folder import RunFolder

    measure(run)
    (run / "checkpoint-3").mkdir()
    (run / "checkpoint-3" / "adapter_config.json").write_text("{}")
    assert len(RunFolder.find(run).measurements()) == 3 and not caplog.text
    assert RunFolder.find(run / "checkpoint-3").measurements() == []
    assert "is left out: this is" in caplog.text and "checkpoint-3" in caplog.text


def test_a_file_that_is_named_and_found_counts_once(run):
    from poise.hub_cards.publishing.run_folder import RunFolder

    measure(run)
    named = run / "model" / ".." / "evaluation" / "vqa-vqa" / "metrics.json"
    copy = run / "copy.json"
    shutil.copy(named, copy)
    card_data, _, _ = RunFolder.find(run).everything_for_the_card([named, copy])
    assert [row.dataset for row in card_data.evaluation] == ["scenes", "vqa.jsonl"]


def test_push_to_hub_makes_the_same_repository(online, built, run, unchecked, monkeypatch):
    from poise.training.sft.checkpoints import load_trained

    measure(run)
    assert main([str(run), "--repo", "user/name"]) == 0
    published = online.repositories.pop("user/name").main
    assert {"README.md", "evaluation_results.json", "recipe.yaml", "sample.png", "plots/robustness.png"} <= set(
        published
    )
    model, _ = load_trained(run / "model")
    monkeypatch.delenv("HF_TOKEN")
    url = model.push_to_hub("user/name", token=WRITE_TOKEN)
    assert url.startswith(f"{online.endpoint}/user/name/commit/")
    pushed = online.repositories["user/name"].main
    assert {path: file.content for path, file in pushed.items()} == {
        path: file.content for path, file in published.items()
    }


def test_push_to_hub_needs_a_processor(backbones):
    from folder_models import build

    from poise.hub_cards import push_to_hub

    with pytest.raises(ValueError, match="processor=None"):
        push_to_hub(build(backbones)[0], "user/name")
