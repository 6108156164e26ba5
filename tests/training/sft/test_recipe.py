"""Recipes: where they are found, what may stand in them, how a command line overrides them."""

import pytest
import yaml

from poise.commands.train import parse_overrides, source_override
from poise.training.recipe_loading import recipe_path
from poise.training.sft.recipe import load_recipe
from poise.training.sft.stage import training_arguments

SHIPPED = ("demo", "photos", "siglip2_smollm2_minilm", "clip_flan_t5_bert")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid_under_each_of_its_spellings(name):
    assert load_recipe(name) == load_recipe(f"{name}.yaml") == load_recipe(f"recipes/{name}.yaml")


def test_resolved_recipe_reads_back_as_itself(tmp_path):
    recipe = load_recipe("demo", {"router_type": "gate", "training.max_steps": 3})
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_overrides_reach_their_section():
    words = ["--router_type", "gate", "--training.max_steps=7", "--adapters", "1e-4", "lora.r=2"]
    recipe = load_recipe("demo", parse_overrides(words))
    assert recipe.model["router_type"] == recipe.model.router_type == "gate" and recipe.lora.r == 2
    assert recipe.training["max_steps"] == 7
    assert recipe.learning_rates["adapters"] == 1e-4


def test_a_bare_key_of_two_sections_must_be_written_out():
    with pytest.raises(ValueError, match=r"model.tag_encoder or learning_rates.tag_encoder"):
        load_recipe("demo", {"tag_encoder": "tiny:tag_encoder"})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"router_typ": "gate"}, ["router_typ", "router_type"]),
        ({"router_type": "reliabilty"}, ["reliabilty", "reliability"]),
        ({"soft_prompt_type": "dynamc"}, ["dynamc", "dynamic"]),
        ({"projector_type": "mpl"}, ["mpl", "mlp"]),
        ({"quantization": "fp4"}, ["fp4", "nf4"]),
        ({"learning_rates.new_modules": -1}, ["new_modules", "-1"]),
        ({"soft_prompt_pooling": "mean"}, ["soft_prompt_length=12", "soft_prompt_length=1"]),
        (
            {
                "soft_prompt_type": "none",
                "router_type": "gate",
                "learning_rates.soft_prompt": None,
            },
            ["router_type='gate'", "choose a soft prompt"],
        ),
        ({"soft_prompt_type": "none"}, ["learning_rates.soft_prompt", "drop the rate"]),
        ({"data.train": None}, ["data.train", "--data"]),
        ({"training.max_step": 3}, ["max_step", "max_steps"]),
        ({"training.max_steps": -1, "num_train_epochs": 0}, ["num_train_epochs=0", "trains nothing", "max_steps"]),
        ({"training.max_steps": 0}, ["max_steps=0", "trains nothing"]),
        ({"training.metric_for_best_model": "vqa_acuracy"}, ["vqa_acuracy", "vqa_accuracy"]),
        ({"training.remove_unused_columns": True}, ["remove_unused_columns", "leave it out"]),
        ({"early_stopping.patience": 2}, ["early_stopping.patience=2", "eval_strategy"]),
        ({"early_stopping.patience": 0, "eval_strategy": "steps"}, ["early_stopping.patience=0", "at least 1"]),
        ({"lora.r": 0}, ["lora.r=0", "at least 1"]),
        ({"lora.dropout": 1.5}, ["lora.dropout=1.5", "at least 0 and below 1"]),
        ({"lora.use_dora": "yes"}, ["lora.use_dora='yes'", "true or false"]),
        ({"lora.task_routed": True, "lora.use_dora": True}, ["task_routed", "use_dora", "drop one"]),
        ({"model.dtype": "float23"}, ["float23", "bfloat16"]),
        ({"model.tag_encoder": None}, ["tag_encoder", "soft_prompt_type"]),
        ({"data.max_length": 0}, ["data.max_length=0", "at least 1"]),
        ({"learning_rates.adapters": {"rate": 1e-3, "schedul": "cosine"}}, ["schedul", "schedule"]),
        ({"learning_rates.adapters": {"rate": 1e-3, "schedule": "cosin"}}, ["cosin", "cosine"]),
        ({"learning_rates.adapters": {"schedule": "cosine"}}, ["learning_rates.adapters", "rate"]),
        ({"learning_rates.adapters": "1e-3"}, ["learning_rates.adapters='1e-3'", "1.0e-3"]),
        ({"checks.allow_without_gradient": ["ruoter"]}, ["ruoter", "router"]),
        ({"learning_rates.tag_encoder": 1e-4, "soft_prompt_type": "static"}, ["learning_rates.tag_encoder", "static"]),
        ({"training.dataloader_persistent_workers": True, "dataloader_num_workers": 2}, ["persistent", "leave it out"]),
    ],
)
def test_a_mistake_names_the_value_and_the_remedy_in_one_line(overrides, words):
    with pytest.raises(ValueError) as caught:
        load_recipe("demo", overrides)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"modle": {}}, ["modle", "model"]),
        ({"model": {"visoin": "x"}}, ["visoin", "vision"]),
        ({"data": {"trian": "x"}}, ["trian", "train"]),
        ({"learning_rates": {"adapter": 1.0}}, ["adapter", "adapters"]),
    ],
)
def test_unknown_keys_of_a_file_suggest_the_nearest(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as caught:
        load_recipe(str(path))
    assert all(word in str(caught.value) for word in words)


def test_yaml_that_is_none_and_a_recipe_that_is_not_there(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: [unclosed")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(str(path))
    with pytest.raises(ValueError, match="demo"):
        recipe_path("demmo")


def test_options_need_values():
    with pytest.raises(ValueError, match="--router_type needs a value"):
        parse_overrides(["--router_type"])
    with pytest.raises(ValueError, match="was not expected"):
        parse_overrides(["router_type"])


def test_a_rate_of_null_is_taken_back():
    assert "soft_prompt" in load_recipe("demo").learning_rates
    assert "soft_prompt" not in load_recipe("demo", {"learning_rates.soft_prompt": None}).learning_rates


def test_a_model_that_checks_tags_knows_where_each_ends():
    from poise.training.sft.assembly import assemble

    model, processor = assemble(load_recipe("demo", {"align_words": False}))
    lines = processor.tag_tokenizer(["red square, blue star, ring"], return_tensors="pt")
    _, tag_of_token = model.model.router.word_evidence.tags_of_tokens(
        lines["input_ids"], lines["attention_mask"].bool()
    )
    length = lines["input_ids"].shape[1]
    assert length == 9  # [CLS] red square , blue star , ring [SEP]
    assert tag_of_token[0].tolist() == [9, 1, 1, 9, 2, 2, 9, 3, 9]


def test_data_on_the_line_is_a_name_or_a_mapping():
    assert source_override("user/photos") == "user/photos"
    assert source_override("{name: user/photos, split: test}") == {"name": "user/photos", "split": "test"}
    assert source_override("[a.jsonl, {name: b, weight: 2}]") == ["a.jsonl", {"name": "b", "weight": 2}]
    with pytest.raises(ValueError, match="space behind each colon"):
        source_override("{name: a, split: 'test}")


def test_an_optional_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("poise.training.run_start.get_available_reporting_integrations", list)
    for wanted, words in (
        ("trackio", "poise.trackio."),
        (["tensorboard"], "poise.tensorboard."),
        ("wandb", "l wandb,"),
    ):
        with pytest.raises(ImportError, match=words):
            training_arguments(load_recipe("demo", {"report_to": wanted, "output_dir": str(tmp_path)}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(ImportError, match="poise.quantization."):
        load_recipe("demo", {"model.quantization": "nf4"})


def test_a_quantized_language_model_without_adapters_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    content = {"model": {"vision": "tiny:vision", "text": "tiny:causal_lm", "tag_encoder": "tiny:tag_encoder",
                         "quantization": "nf4"}, "data": {"train": "scenes"}, "lora": None,
               "learning_rates": {"new_modules": 1.0e-3}}  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="give lora a rank"):
        load_recipe(str(path))


def test_a_strategy_of_no_is_no_strategy():
    """YAML reads the bare word as false, in a file and on a command line."""
    recipe = load_recipe("demo", parse_overrides(["--eval_strategy", "no", "--training.save_strategy", "no"]))
    assert recipe.training["eval_strategy"] == recipe.training["save_strategy"] == "no"
