"""`evaluate` and `robustness` on models of other families, through their own processors and chat templates."""

import json

import pytest
import torch
from tiny_folders import FOLDERS

from poise.command_line import main
from poise.commands.options import METHODS as OPTIONS
from poise.evaluation.chat_collator import ChatCollator, chat_log_likelihoods
from poise.evaluation.decoding import Decoding, parse_strengths
from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.model_loading import load_model
from poise.modeling.decoding_methods import METHODS, check_method
from poise.processing.scenes.scenes import Scenes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in FOLDERS.items()}


@pytest.fixture(scope="module")
def models(folders):
    return {name: load_model(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def records():
    drawn = Scenes("test", size=3, tasks=("vqa",))
    return [*drawn.__getitems__([0, 1, 2])]


def predictions(evaluator, models, name, records):
    rows = []
    evaluator.score = lambda found: rows.extend(found) or {}
    evaluator(*models[name], records)
    return [row["prediction"] for row in rows]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_batch_is_answered_as_the_processor_and_generate_would(models, name, records):
    model, processor = models[name]
    collator = ChatCollator(processor, model.config)
    tokenizer = processor.tokenizer
    expected = []
    for record in records:
        inputs = collator([record])[0]
        assert set(inputs) <= {"input_ids", "attention_mask", "pixel_values", "token_type_ids"}
        suppressed = [model.config.image_token_id]
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=suppressed)[0]
        if name != "blip2_t5":
            tokens = tokens[inputs["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True).strip())
    evaluator = GenerationEvaluator(task="vqa", max_new_tokens=6, batch_size=3, progress=False)
    assert predictions(evaluator, models, name, records) == expected
    assert len({*expected}) > 1 or name in ("paligemma", "blip2_opt")


@pytest.mark.parametrize("name", FOLDERS)
def test_likelihoods_of_choices_are_those_of_one_forward_pass(models, name, records):
    model, processor = models[name]
    collator = ChatCollator(processor, model.config)
    tokenizer = processor.tokenizer
    answers = ["red", "two blue stars", "red"]
    found, counts = chat_log_likelihoods(model, collator, records, answers)
    assert counts == [2, 4, 2] and all(value < 0 for value in found)
    # By hand, a token at a time: what is said so far is part of the prompt.
    ids = tokenizer.encode(" red" if name != "blip2_t5" else "red", add_special_tokens=False) + [tokenizer.eos_token_id]
    inputs, total = dict(collator(records[:1])[0]), 0.0
    said = torch.tensor([[tokenizer.pad_token_id]])
    for token in ids:
        with torch.no_grad():
            arguments = {"decoder_input_ids": said} if name == "blip2_t5" else {}
            total += float(model(**inputs, **arguments).logits[0, -1].log_softmax(-1)[token])
        said = torch.cat([said, torch.tensor([[token]])], 1)
        if name != "blip2_t5":
            for key, value in (("input_ids", token), ("attention_mask", 1), ("token_type_ids", 1)):
                if key in inputs:
                    inputs[key] = torch.cat([inputs[key], torch.tensor([[value]])], 1)
    # Answers are one after the other of the same record, not padded to each other.
    assert found[0] == pytest.approx(total, abs=1e-3)


def test_tags_are_words_or_left_out(models, records):
    model, processor = models["llava"]
    record = {**records[0], "tags": [["cat", 0.2], ["dog", 0.9]]}
    with_tags = ChatCollator(processor, model.config).prompt_text(record)
    assert "dog, cat" in with_tags and with_tags.index("dog") < with_tags.index(record["question"])
    without = ChatCollator(processor, model.config, tag_words=False).prompt_text(record)
    assert "dog" not in without and record["question"] in without
    assert without.startswith("user: <image>") and without.endswith("assistant:")
    two = {**record, "image": [record["image"]] * 2, "tags": [[["cat", 0.2]], [["dog", 0.9], ["cat", 0.1]]]}
    text = ChatCollator(processor, model.config).prompt_text(two)
    assert text.count("<image>") == 2 and "dog, cat." in text
    assert len(ChatCollator(processor, model.config)([two, record])[0]["pixel_values"]) == 3


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("decoding", ["vcd", "m3id", "mad", "shifted_yes"])
def test_a_method_at_strength_zero_answers_as_the_model(models, name, decoding, records):
    zero = {"vcd": {"alpha": 0}, "m3id": {"decay": 0}, "mad": {"gamma": 0}, "shifted_yes": {"shift": 0}}[decoding]
    options = {"task": "vqa", "max_new_tokens": 4, "progress": False}
    own = predictions(GenerationEvaluator(**options), models, name, records)
    method = GenerationEvaluator(decoding=Decoding(decoding, zero), **options)
    assert predictions(method, models, name, records) == own
    if decoding == "shifted_yes" and name == "llava":
        always = GenerationEvaluator(decoding=Decoding(decoding, {"shift": 1e4}), **options)
        assert all(answer.lower().startswith("yes") for answer in predictions(always, models, name, records))


def test_results_state_how_they_were_made_and_come_out_the_same(folders, tmp_path, capsys):
    written = []
    for run in ("first", "second"):
        command = ["evaluate", folders["llava"], "--data", "scenes:test,size=6", "--task", "vqa", "--resamples", "20"]
        command += ["--decoding", "vcd", "--strength", "alpha=0.5", "--tags", "none", "--max-new-tokens", "4"]
        assert main([*command, "--output", str(tmp_path / run)]) == 0
        written.append([(tmp_path / run / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")])
    assert written[0] == written[1]
    result = json.loads(written[0][0])
    assert result["decoding"] == {"name": "vcd", "alpha": 0.5, "beta": 0.1, "noise_step": 500, "seed": 0}
    assert result["prompt"].startswith("user: <image>") and "The image shows" not in result["prompt"]
    assert result["versions"]["torch"].startswith(torch.__version__)


def test_robustness_of_another_family(folders, tmp_path, capsys):
    command = ["robustness", folders["blip2_opt"], "--samples", "2", "--degradations", "blank", "--severities", "5"]
    command += ["--decoding", "cfg", "--resamples", "0", "--max-new-tokens", "3", "--output", str(tmp_path)]
    assert main(command) == 0
    result = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))
    assert result["decoding"] == {"name": "cfg", "guidance": 1.5} and "clean" in result["scores"]
    assert "The image shows" in result["prompt"]


def test_bad_requests_are_told_before_a_model_is_loaded(tmp_path, capsys):
    for options, part in (
        (["--decoding", "vcd", "--strength", "gamma=1"], "decoding 'vcd' has alpha"),
        (["--decoding", "vcd", "--strength", "alpha"], "is no NAME=NUMBER"),
        (["--decoding", "m3id", "--num-beams", "2"], "one beam"),
    ):
        data = ["--data", "scenes:test,size=2", "--output", str(tmp_path)]
        assert main(["evaluate", str(tmp_path / "nowhere"), *data, *options]) == 1
        message = capsys.readouterr().err.strip()
        assert part in message and "\n" not in message


def test_options_name_every_method():
    assert OPTIONS == tuple(METHODS)
    assert parse_strengths(["alpha=2", "noise-step=100"]) == {"alpha": 2.0, "noise_step": 100.0}
    assert check_method("vcd", parse_strengths(["noise-step=100"]))["noise_step"] == 100


def test_nothing_is_decoded_where_likelihoods_are_compared(models, records):
    chosen = [{**r, "metadata": {"choices": ["red", "blue"], "correct_choice_idx": 0}} for r in records]
    metrics = GenerationEvaluator(task="multiple_choice", progress=False, resamples=0)(*models["llava"], chosen)
    assert metrics["multiple_choice_samples"] == 3
    with pytest.raises(ValueError, match="nothing is decoded"):
        method = Decoding("vcd")
        GenerationEvaluator(task="multiple_choice", decoding=method, progress=False)(*models["llava"], chosen)
