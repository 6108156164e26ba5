"""Cards: what the Hub's parser reads back, sections without data, names of backbones, bad card data."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from poise.hub_cards.card.backbone_names import base_models, hub_id, in_words
from poise.hub_cards.card.data import CardData, EvaluationRow, add_evaluation_file, rows_from
from poise.hub_cards.card.model_card import POOLINGS, ROUTERS, SCORE_ENCODINGS, SOFT_PROMPTS, build_card
from poise.hub_cards.card.tables import condition_table, markdown, score_table, verdict
from poise.modeling import PoiseConfig
from poise.modeling.information_router import ROUTERS as BUILT_ROUTERS
from poise.modeling.soft_prompt import PROMPT_POOLINGS
from poise.modeling.soft_prompt import SCORE_ENCODINGS as BUILT_ENCODINGS
from poise.modeling.soft_prompt import SOFT_PROMPTS as BUILT_PROMPTS

SECTIONS = (
    "How to use it",
    "How it holds up",
    "What it was trained on",
    "What it must not be used for",
    "Details",
    "Licences",
)
DETAILS = ("Architecture", "Training", "Evaluation", "Dominance", "Works it builds on")
CONDITIONS = [
    {"condition": "clean", "stream": "none", "accuracy": 0.9, "low": 0.85, "high": 0.93, "n": 300,
     "image_weight": 0.97, "text_weight": 0.95},
    {"condition": "prior broken", "stream": "none", "accuracy": 0.7, "low": 0.6, "high": 0.8, "n": 300,
     "image_weight": 0.96, "text_weight": 0.94},
    {"condition": "image | blank", "stream": "image", "accuracy": 0.4, "low": 0.3, "high": 0.5, "n": 300,
     "image_weight": 0.0, "text_weight": 0.95},
]  # fmt: skip


def config(**fields):
    backbones = {"vision": "acme/tower", "text": "acme/words", "tag_encoder": "acme/tags"}
    return PoiseConfig(**{"backbones": backbones, "router_type": "reliability", **fields})


def section(card: ModelCard, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card.text, flags=re.MULTILINE | re.DOTALL)[1].strip()


def details(card: ModelCard, title: str) -> str:
    pattern = rf"<summary>{title}</summary>\n(.*?)</details>"
    return re.search(pattern, card.text, flags=re.MULTILINE | re.DOTALL)[1].strip()


def test_every_section_is_there_and_says_when_it_has_no_data():
    card = build_card(config(), CardData(), "user/name")
    assert re.findall(r"^## (.*)$", card.text, flags=re.MULTILINE) == list(SECTIONS)
    assert re.findall(r"<summary>(.*)</summary>", card.text) == list(DETAILS)
    assert "not recorded" in section(card, "What it was trained on") and "No record" in details(card, "Training")
    assert "has not been evaluated" in details(card, "Evaluation")
    assert "Not measured" in section(card, "How it holds up") and "Not measured" in details(card, "Dominance")
    assert "was not measured" in section(card, "What it must not be used for")
    assert "No licence was chosen" in section(card, "Licences")
    assert card.data.get("model-index") is None and card.data.eval_results is None and card.data.metrics is None
    assert not re.search(r"\|\s*(None|nan|Undefined)", card.text)


def test_tables_hold_values_intervals_and_counts():
    data = CardData()
    data.add_conditions(CONDITIONS)
    card = build_card(config(), data, "user/name", plots={"robustness": "plots/robustness.png"})
    assert "On `scenes`:" in details(card, "Evaluation")
    table = "| metric | value | n |\n| --- | --- | --- |\n| VQA accuracy | 0.900 [0.850, 0.930] | 300 |"
    assert table in details(card, "Evaluation")
    failing = section(card, "How it holds up")
    assert failing.startswith(r"VQA accuracy is 0.90 on sound input and falls to 0.40 at worst (image \| blank).")
    assert r"| image \| blank | 0.400 [0.300, 0.500] | -0.500 | 0.00 | 0.95 | 300 |" in failing
    assert "![Score by condition](plots/robustness.png)" in failing
    assert "prior broken" in details(card, "Dominance") and "clean" not in details(card, "Dominance")
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value, result.dataset_name) == ("vqa_accuracy", 0.9, "scenes")


def test_what_a_reader_sees_first_fits_into_eight_columns_and_ten_lines():
    metrics = ["vqa_accuracy, mean over severities", *(f"severity {n}" for n in range(1, 6)), "router image_weight"]
    rows = [EvaluationRow("clean", "vqa_accuracy", 0.9, 0.8, 0.95, 100, "scenes:test")]
    rows += [
        EvaluationRow(f"image {damage}", metric, 0.8 - damage / 50, n=100, dataset="scenes:test")
        for damage in range(20)
        for metric in metrics
    ]
    table = condition_table(rows)
    assert len(table["headers"]) <= 8 and all(len(line) == len(table["headers"]) for line in table["lines"])
    assert [line[0] for line in table["lines"]] == ["clean", *(f"image {damage}" for damage in range(19, 10, -1))]
    assert table["left_out"] == 11 and table["lines"][1][1:4] == ["0.420", "-0.480", "0.42"]
    assert verdict(rows) == "VQA accuracy is 0.90 on sound input and falls to 0.42 at worst (image 19)."
    assert verdict(rows[1:]) == "" and condition_table([]) is None
    text = str(build_card(config(), CardData(robustness=rows, evaluation=rows), "user/name"))
    assert "11 more conditions" in text
    assert max(line.count("|") for line in text.splitlines() if line.startswith("| ")) <= 9


def test_all_scores_stand_in_one_long_table():
    rows = [
        EvaluationRow("clean", "vqa_accuracy", 0.5, 0.4, 0.6, 100, "scenes:test"),
        EvaluationRow("tags by tagger", "vqa_empty_share", 0.1, n=100, dataset="scenes:test"),
    ]
    table = score_table(rows)
    assert table["headers"] == ["condition", "metric", "value", "n"] and table["dataset"] == "scenes:test"
    assert table["lines"] == [
        ["clean", "VQA accuracy", "0.500 [0.400, 0.600]", 100],
        ["tags by tagger", "empty answers", "0.100", 100],
    ]
    captions = [EvaluationRow("clean", "caption_cider_d", 1.5, n=7, dataset="coco.jsonl")]
    expected = "On `coco.jsonl`:\n\n| metric | value | n |\n| --- | --- | --- |\n| CIDEr-D | 1.500 | 7 |"
    assert markdown(score_table(captions)) == expected
    assert score_table([*rows, *captions])["headers"] == ["data", "condition", "metric", "value", "n"]


def test_what_it_was_trained_on_says_what_it_is_not_for():
    drawn = {"name": "scenes", "split": "train", "tag_scores": "simulated"}
    tiny = config(backbones={"vision": "tiny:vision", "text": "tiny:causal_lm"})
    card = build_card(tiny, CardData(datasets=[drawn]), "user/name")
    assert "scores were simulated" in section(card, "What it was trained on")
    assert "Photographs" in section(card, "What it must not be used for")
    assert "Conversation" in section(card, "What it must not be used for")
    card = build_card(config(), CardData(datasets=[drawn, {"name": "photos"}]), "user/name")
    assert "Photographs" not in card.text and "Conversation" not in card.text and card.text.count("simulated") == 1


def test_only_scores_are_in_the_index_and_conditions_are_told_apart():
    rows = [
        EvaluationRow("clean", "vqa_accuracy", 0.5, dataset="scenes:test"),
        EvaluationRow("clean", "vqa_empty_share", 0.1, dataset="scenes:test"),
        EvaluationRow("tags by tagger", "vqa_accuracy", 0.4, dataset="scenes:test"),
        EvaluationRow("clean", "grounding_accuracy@0.5", 0.3, dataset="boxes.jsonl"),
    ]
    card = ModelCard(str(build_card(config(), CardData(evaluation=rows), "user/name")))
    found = {(one.dataset_type, one.dataset_split, one.dataset_config): one for one in card.data.eval_results}
    assert len(card.data.eval_results) == len(found) == 3
    assert found["scenes", "test", None].metric_value == 0.5
    assert found["scenes", "test", "tags by tagger"].metric_value == 0.4
    assert found["boxes.jsonl", None, None].metric_type == "accuracy" and card.data.metrics == ["accuracy"]


def test_quantized_weights_are_called_so():
    card = ModelCard(str(build_card(config(), CardData(), "user/name", "quantized")))
    assert card.data.base_model_relation == "quantized" and card.data.library_name == "transformers"
    assert "with its language model quantized" in card.text and "and `bitsandbytes`" in card.text


def test_works_are_those_of_the_parts_and_the_backbones():
    names = {"vision": "google/siglip2-base-patch16-224", "text": "acme/words", "tag_encoder": None}
    recipe = {"lora": {"r": 8, "alpha": 16, "use_dora": True}, "model": {"quantization": "nf4"}}
    text = str(build_card(config(backbones=names), CardData(recipe=recipe), "user/name"))
    cited = re.findall(r"eprint +\= \{([\d.]+)\}", text)
    # MoIR, Mahalanobis distance, LION, LLaVA, LoRA, DoRA, QLoRA, SigLIP 2
    assert cited == "2604.16264 1807.03888 2311.11860 2304.08485 2106.09685 2402.09353 2305.14314 2502.14786".split()
    plain = str(
        build_card(config(router_type="none", soft_prompt_type="none", backbones=None), CardData(), "user/name")
    )
    assert re.findall(r"eprint +\= \{([\d.]+)\}", plain) == ["2304.08485"]
    keys = re.findall(r"^@\w+\{(\w+),$", text, flags=re.MULTILINE)
    assert len(keys) == len(set(keys)) == 8


def test_metadata_survives_the_hubs_parser():
    data = CardData(
        license="mit",
        language=["en"],
        datasets=[{"name": "COCO captions", "hub_id": "acme/coco", "records": 5}, {"name": "scenes"}],
        evaluation=[EvaluationRow("clean", "caption_cider_d", 1.1, dataset="COCO captions")],
    )
    card = ModelCard(str(build_card(config(), data, "user/name", "adapter")))
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "base_model": ["acme/words", "acme/tower", "acme/tags"],
        "base_model_relation": "adapter",
        "language": ["en"],
        "license": "mit",
        "datasets": ["acme/coco"],
        "metrics": ["cider"],
        "tags": ["poise", "vision-language", "image-to-text", "router-reliability", "soft-prompt-dynamic", "lora"],
        "model-index": [
            {
                "name": "name",
                "results": [
                    {
                        "task": {"type": "image-text-to-text"},
                        "dataset": {"type": "acme/coco", "name": "COCO captions"},
                        "metrics": [{"type": "cider", "value": 1.1, "name": "caption_cider_d"}],
                    }
                ],
            }
        ],
    }


def test_shipped_and_local_backbones_are_words_and_no_ids(tmp_path):
    names = {"vision": "tiny:vision", "text": str(tmp_path), "tag_encoder": "acme/tags"}
    card = build_card(config(backbones=names), CardData(), "user/name")
    assert card.data.base_model == ["acme/tags"]
    assert "`tiny:vision`, a tiny vision tower that ships with Poise" in card.text
    assert str(tmp_path) not in str(card) and "a language model that is not on the Hub" in card.text
    without = build_card(config(backbones={"vision": "tiny:vision", "text": "tiny:causal_lm"}), CardData(), "user/name")
    assert without.data.base_model is None and without.data.get("base_model_relation") is None


@pytest.mark.parametrize("name", ["tiny:vision", "/a/b", "./model", "~/model", "a/b/c", "", None, "with space/model"])
def test_what_is_no_hub_id(name):
    assert hub_id(name) is None


def test_a_folder_that_looks_like_a_hub_id_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("outputs/model") == "outputs/model"
    (tmp_path / "outputs" / "model").mkdir(parents=True)
    assert hub_id("outputs/model") is None and "not on the Hub" in in_words("text", "outputs/model")
    assert base_models(None) == []


def test_every_choice_of_the_model_has_words():
    assert set(ROUTERS) == set(BUILT_ROUTERS) and set(SOFT_PROMPTS) == set(BUILT_PROMPTS)
    assert set(POOLINGS) == set(PROMPT_POOLINGS) and set(SCORE_ENCODINGS) == set(BUILT_ENCODINGS)
    for router in ROUTERS:
        card = build_card(config(router_type=router), CardData(), "user/name")
        assert ROUTERS[router] in details(card, "Architecture")
        assert f"router-{router}" in card.data.tags


def test_card_data_comes_back_from_its_file(tmp_path):
    data = CardData(license="mit", losses=[[1, 2.0]], parameters={"adapters": 3, "total": 9})
    data.add_conditions(CONDITIONS)
    data.save(tmp_path / "card_data.json")
    assert CardData.load(tmp_path / "card_data.json") == data
    assert json.loads((tmp_path / "card_data.json").read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 7}', "another version"),
        ('{"nonsense": 1}', "'nonsense' is not known"),
        ("[1]", "expected an object"),
        ("{", "not valid JSON"),
        ('{"evaluation": [{"condition": "clean", "metric": "f1"}]}', r"evaluation\[0\]: expected the fields"),
        ('{"evaluation": [{"condition": "clean", "metric": "f1", "value": "high"}]}', r"value='high' must be"),
        ('{"evaluation": [{"condition": "", "metric": "f1", "value": 1}]}', "must be named"),
        ('{"dominance": [{"condition": "a", "metric": "b", "value": 1, "low": 3, "high": 2}]}', "is above high"),
    ],
)
def test_bad_card_data_names_file_and_field(tmp_path, content, message):
    path = tmp_path / "card_data.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        CardData.load(path)
    assert str(path) in str(caught.value)


def test_scores_of_an_evaluator_become_rows_with_intervals(tmp_path):
    metrics = {"vqa_accuracy": 0.5, "vqa_accuracy_low": 0.4, "vqa_accuracy_high": 0.6, "vqa_samples": 200.0}
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"data": "/home/somebody/vqa.jsonl", "metrics": metrics}))
    data = CardData()
    add_evaluation_file(data, path)
    assert data.evaluation == [EvaluationRow("clean", "vqa_accuracy", 0.5, 0.4, 0.6, 200, "vqa.jsonl")]
    metrics["vqa_accuracy/color"] = 0.7
    path.write_text(json.dumps({"data": "vqa.jsonl", "tagger": "/home/somebody/tagger/", "metrics": metrics}))
    add_evaluation_file(data, path)
    assert data.evaluation[1:] == [
        EvaluationRow("tags by tagger", "vqa_accuracy", 0.5, 0.4, 0.6, 200, "vqa.jsonl"),
        EvaluationRow("color, tags by tagger", "vqa_accuracy", 0.7, dataset="vqa.jsonl"),
    ]
    again = CardData(evaluation=[*data.evaluation, *data.evaluation])
    again.drop_repetitions()
    assert again.evaluation == data.evaluation


def test_results_of_the_demo_and_plain_rows_are_read(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rows": {"none": CONDITIONS[:1], "reliability": CONDITIONS}}))
    data = CardData()
    add_evaluation_file(data, path, "reliability")
    assert len({row.condition for row in data.robustness}) == 3
    with pytest.raises(ValueError, match="it holds none, reliability"):
        add_evaluation_file(data, path, "gate")
    path.write_text(json.dumps({"dominance": [{"condition": "both", "metric": "MDI", "value": 1.5}]}))
    add_evaluation_file(data, path)
    assert data.dominance[-1] == rows_from([{"condition": "both", "metric": "MDI", "value": 1.5}])[0]
    path.write_text("{}")
    with pytest.raises(ValueError, match="neither scores"):
        add_evaluation_file(data, path)
