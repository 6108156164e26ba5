"""The evaluator on real (tiny, random) models: same answers however it is cut up, resumed, or batched."""

import json
from types import SimpleNamespace

import pytest
from torch.utils.data import Subset

from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.evaluation.metrics.vqa_answers import vqa_accuracy
from poise.processing.batching.collators import GenerationCollator
from poise.processing.scenes.scenes import Scenes

QUIET = {"progress": False, "resamples": 50}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def evaluate(model_and_processor, records, **options):
    return GenerationEvaluator(**{**QUIET, **options})(*model_and_processor, records)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def asked():
    """VQA records: the shortest answers."""
    return [dict(record) for record in Scenes("test", size=10, tasks=("vqa",))]


def test_every_task_gets_its_scores(model_and_processor, scenes, tmp_path):
    metrics = evaluate(model_and_processor, scenes, output_dir=tmp_path, max_new_tokens=6)
    tasks = [record["task"] for record in scenes]
    for task, primary in (("caption", "cider_d"), ("vqa", "accuracy"), ("grounding", "accuracy@0.5")):
        assert metrics[f"{task}_samples"] == tasks.count(task) > 0
        assert metrics[f"{task}_{primary}_low"] <= metrics[f"{task}_{primary}"] <= metrics[f"{task}_{primary}_high"]
    assert {"caption_bleu_4", "caption_rouge_l", "grounding_mean_iou", "grounding_unparsable_share"} <= set(metrics)
    primaries = [metrics["caption_cider_d"], metrics["vqa_accuracy"], metrics["grounding_accuracy@0.5"]]
    assert metrics["primary_mean"] == pytest.approx(sum(primaries) / 3)
    assert all(isinstance(value, float) for value in metrics.values())
    # Rows stand in the order of the records and carry what is needed to score them again.
    rows = rows_of(tmp_path)
    assert [row["id"] for row in rows] == [record["id"] for record in scenes]
    assert GenerationEvaluator(**QUIET).score(rows) == metrics
    for row in rows:
        if row["task"] == "vqa":
            assert row["scores"]["accuracy"] == vqa_accuracy(row["prediction"], row["answers"])


def test_answers_are_those_of_generate(model_and_processor, asked, tmp_path):
    model, processor = model_and_processor
    evaluate(model_and_processor, asked, output_dir=tmp_path, max_new_tokens=5, batch_size=4)
    seq2seq = model.config.is_encoder_decoder
    for record, row in zip(asked, rows_of(tmp_path), strict=True):
        inputs, _ = GenerationCollator(processor, is_encoder_decoder=seq2seq)([record])
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]
        tokens = tokens if seq2seq else tokens[inputs["input_ids"].shape[1] :]
        assert row["prediction"] == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert len({row["prediction"] for row in rows_of(tmp_path)}) > 1  # the model does look at what it is given


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_does_not_matter(models_by_language, asked, batch_size):
    one = evaluate(models_by_language["llama"], asked, max_new_tokens=4, batch_size=5)
    assert evaluate(models_by_language["llama"], asked, max_new_tokens=4, batch_size=batch_size) == one


def test_streams_and_data_sets_give_the_same(models_by_language, scenes):
    pair, options = models_by_language["llama"], {"max_new_tokens": 4, "task": "vqa"}
    whole = Scenes("test", size=24)
    expected = evaluate(pair, scenes, **options)
    assert evaluate(pair, whole, **options) == expected
    assert evaluate(pair, (record for record in scenes), **options) == expected
    assert evaluate(pair, whole.to_iterable(), **options) == expected
    assert evaluate(pair, Subset(whole, range(24)), **options) == expected


def test_an_interrupted_run_goes_on(models_by_language, asked, tmp_path, monkeypatch):
    pair, options = models_by_language["llama"], {"max_new_tokens": 4, "batch_size": 2}
    expected = evaluate(pair, asked, **options)
    calls = []
    generate = GenerationEvaluator._generate

    def stumble(self, model, processor, records, rows, length):
        if len(calls) == 3:
            raise Interrupted
        calls.append([record["id"] for record in records])
        generate(self, model, processor, records, rows, length)

    monkeypatch.setattr(GenerationEvaluator, "_generate", stumble)
    with pytest.raises(Interrupted):
        evaluate(pair, asked, output_dir=tmp_path, **options)
    assert len(rows_of(tmp_path)) == 6
    calls.append([])  # past the stumbling block
    assert evaluate(pair, asked, output_dir=tmp_path, **options) == expected
    done = [record_id for ids in calls for record_id in ids]
    assert sorted(done) == sorted(record["id"] for record in asked)  # each exactly once
    assert [row["id"] for row in rows_of(tmp_path)] == [record["id"] for record in asked]


def test_finished_runs_ask_the_model_nothing(models_by_language, asked, tmp_path, monkeypatch):
    pair = models_by_language["llama"]
    metrics = evaluate(pair, asked, output_dir=tmp_path, max_new_tokens=4)
    monkeypatch.setattr(GenerationEvaluator, "predict", lambda *arguments: pytest.fail("asked again"))
    assert evaluate(pair, asked, output_dir=tmp_path, max_new_tokens=4) == metrics


def test_changed_data_are_noticed(models_by_language, asked, tmp_path):
    pair = models_by_language["llama"]
    evaluate(pair, asked, output_dir=tmp_path, max_new_tokens=2)
    changed = [{**asked[0], "answers": ["something else"]}, *asked[1:]]
    with pytest.raises(ValueError, match="the data changed"):
        evaluate(pair, changed, output_dir=tmp_path, max_new_tokens=2)


def test_a_model_inside_peft(tiny_model_factory, asked):
    from peft import LoraConfig, get_peft_model

    model, processor = tiny_model_factory("llama")
    expected = evaluate((model, processor), asked, max_new_tokens=4)
    adapter = LoraConfig(target_modules=r".*language_model\..*\.q_proj", r=2)  # starts as the identity
    assert evaluate((get_peft_model(model, adapter), processor), asked, max_new_tokens=4) == expected


def test_training_mode_is_given_back(models_by_language, asked):
    model, processor = models_by_language["llama"]
    model.train()
    try:
        evaluate((model, processor), asked[:2], max_new_tokens=2)
        assert model.training
    finally:
        model.eval()


def test_pope_takes_the_yes_no_questions(models_by_language):
    records = list(Scenes("test", size=30, tasks=("vqa",), question_types=("presence", "color")))
    metrics = evaluate(models_by_language["llama"], records, task="pope", max_new_tokens=2)
    assert metrics["pope_samples"] == sum(record["answers"][0] in ("yes", "no") for record in records)
    assert {"pope_f1", "pope_precision", "pope_recall", "pope_yes_ratio", "pope_unparsable_share"} <= set(metrics)


def test_multiple_choice(model_and_processor, asked, tmp_path):
    choices = {"choices": ["red", "blue", "a long way round"], "correct_choice_idx": 1}
    records = [{**record, "metadata": {**record["metadata"], **choices}} for record in asked[:4]] + asked[4:]
    evaluator = GenerationEvaluator(task="multiple_choice", output_dir=tmp_path, batch_size=3, **QUIET)
    metrics = evaluator(*model_and_processor, records)
    assert metrics["multiple_choice_samples"] == 4
    assert evaluator.primary_metric in metrics
    rows = rows_of(tmp_path)
    for row in rows:
        best = max(range(3), key=row["log_likelihoods"].__getitem__)
        assert row["prediction"] == row["choices"][best]
        assert row["num_tokens"] == [2, 2, 5]
        assert row["scores"]["accuracy"] == float(best == 1)


def test_soft_scores_go_before_answers(models_by_language, asked, tmp_path):
    record = {**asked[0], "answers": ["x", "y"], "metadata": {"answer_scores": {"x": 1.0, "y": 0.5}}}
    evaluate(models_by_language["llama"], [record], output_dir=tmp_path, max_new_tokens=2)
    row = rows_of(tmp_path)[0]
    assert GenerationEvaluator(**QUIET).score([{**row, "prediction": "Y."}])["vqa_accuracy"] == 0.5


def test_groups_and_clusters(models_by_language, asked):
    records = [{**record, "metadata": {**record["metadata"], "image_id": i // 5}} for i, record in enumerate(asked)]
    metrics = evaluate(models_by_language["llama"], records, group_by="question_type", max_new_tokens=2)
    kinds = {record["metadata"]["question_type"] for record in records}
    assert {f"vqa_accuracy/{kind}" for kind in kinds} <= set(metrics)
    one_image = [{**record, "metadata": {"image_id": 7}} for record in asked]
    assert "vqa_accuracy_low" not in evaluate(models_by_language["llama"], one_image, max_new_tokens=2)


def test_no_intervals_on_request(models_by_language, asked):
    assert "vqa_accuracy_low" not in evaluate(models_by_language["llama"], asked, resamples=0, max_new_tokens=2)


def test_primary_metric_names_a_score(models_by_language, scenes):
    for task in (None, "vqa", "caption", "grounding"):
        evaluator = GenerationEvaluator(task=task, max_new_tokens=2, **QUIET)
        assert evaluator.greater_is_better
        assert evaluator.primary_metric in evaluator(*models_by_language["llama"], scenes)


def test_bad_input(models_by_language, asked, scenes):
    pair = models_by_language["llama"]
    with pytest.raises(ValueError, match="task='captions' is not known"):
        GenerationEvaluator(task="captions")
    with pytest.raises(ValueError, match="batch_size=0"):
        GenerationEvaluator(batch_size=0)
    with pytest.raises(ValueError, match="holds nothing for tasks"):
        evaluate(pair, [])
    with pytest.raises(ValueError, match="holds nothing for caption"):
        evaluate(pair, asked, task="caption")
    with pytest.raises(ValueError, match="twice"):
        evaluate(pair, [asked[0], asked[0]], max_new_tokens=2)
    with pytest.raises(ValueError, match="has no answers"):
        evaluate(pair, [{**asked[0], "answers": []}], max_new_tokens=2)
    text_model = SimpleNamespace(input_modalities=("text",), training=False, eval=lambda: None, train=lambda mode: None)
    with pytest.raises(ValueError, match="takes text, no images"):
        evaluate((text_model, pair[1]), asked)
