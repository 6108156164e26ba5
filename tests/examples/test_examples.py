"""Every example runs from its first line to its last, for two steps, on models of random weights."""

import json
import re
import runpy
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from poise.processing import load_task_records

REPOSITORY = Path(__file__).resolve().parent.parent.parent
EXAMPLES = {path.stem: path for path in sorted((REPOSITORY / "examples").glob("*.py"))}
TINY = files("poise.training") / "backbones"
BACKBONES = [
    "--vision",
    str(TINY / "vision"),
    "--text",
    str(TINY / "causal_lm"),
    "--tag-encoder",
    str(TINY / "tag_encoder"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The model that the example of building one leaves after two steps; the others take it."""
    folder = tmp_path_factory.mktemp("built")
    run("build_from_backbones", *BACKBONES, "--steps", "2", "--output", str(folder))
    return folder


def run(name, *words):
    """An example as `python examples/NAME.py WORDS` runs it, in this process."""
    before = sys.argv
    sys.argv = [str(EXAMPLES[name]), *words]
    try:
        runpy.run_path(str(EXAMPLES[name]), run_name="__main__")
    finally:
        sys.argv = before


def test_there_are_eight_and_each_names_what_it_needs():
    assert len(EXAMPLES) == 8
    for path in EXAMPLES.values():
        block = re.search(r"^# /// script\n((?:# .*\n)+?)# ///$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        settings = tomllib.loads("".join(line[2:] + "\n" for line in block[1].splitlines()))
        assert settings["dependencies"][0].startswith("poise @ ")
        assert f"examples/{path.name}" in path.read_text(encoding="utf-8")  # how to call it stands at its top


def test_build_from_backbones(built):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(built)
    assert model.config.router_type == "reliability" and AutoProcessor.from_pretrained(built).tokenizer is not None


def test_diagnose_vlm(built, capsys):
    run("diagnose_vlm", str(built), "--samples", "4")
    printed = capsys.readouterr().out
    assert re.search(r"with the image +\d\.\d\d\n", printed) and "swapped_image" in printed


def test_image_reliability(built, tmp_path, capsys):
    Image.new("RGB", (48, 48), "white").save(tmp_path / "white.png")
    words = ["--data", "scenes:train,size=450", "--output", str(tmp_path / "fitted")]
    words += ["--images", str(tmp_path / "white.png")]
    run("image_reliability", str(built), *words)
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\d\.\d\d  ", line)]
    trust = {line[6:].partition("  (")[0]: float(line[:4]) for line in lines}
    assert trust["a sound image"] > 0.5 > trust[str(tmp_path / "white.png")]


def test_tag_photos(tmp_path, monkeypatch):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**shape, image_size=32, patch_size=16, id2label={0: "dog", 1: "cat"})
    ViTForImageClassification(config).save_pretrained(tmp_path / "tagger")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "tagger")
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    output = tmp_path / "tagged.jsonl"
    run("tag_photos", str(tmp_path / "photos"), "--tagger", str(tmp_path / "tagger"), "--output", str(output))
    records = load_task_records(output)
    assert [record["id"] for record in records] == ["a", "b"] and records[0]["tags"][0].name in ("dog", "cat")


def test_train_with_accelerate(built, tmp_path, capsys):
    run("train_with_accelerate", "--model", str(built), "--steps", "2", "--cpu", "--output", str(tmp_path))
    assert capsys.readouterr().out.count("loss ") == 2 and (tmp_path / "model.safetensors").is_file()


def test_dpo_with_trl(built, tmp_path):
    pytest.importorskip("trl")
    rows = []
    for number, color in enumerate(("red", "blue", "red", "blue")):
        Image.new("RGB", (48, 48), color).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "what color is the square ?", "chosen": color,
                     "rejected": "green", "tags": [[f"{color} square", 0.9]]})  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(
        "dpo_with_trl",
        str(built),
        "--data",
        str(tmp_path / "pairs.jsonl"),
        "--steps",
        "2",
        "--output",
        str(tmp_path / "out"),
    )
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_publish_with_card(built, tmp_path):
    words = ["--repo", "user/name", "--data", "scenes:test,size=4", "--output", str(tmp_path / "published")]
    run("publish_with_card", str(built), *words)
    assert "vqa_accuracy" in (tmp_path / "published" / "README.md").read_text(encoding="utf-8")


def test_new_router(tmp_path, capsys):
    from poise.modeling.information_router import ROUTERS

    try:
        run("new_router", "--steps", "2", "--output", str(tmp_path))
    finally:
        ROUTERS.pop("variance", None)
    assert "sharpness" in capsys.readouterr().out


NOTEBOOKS = sorted((REPOSITORY / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook, tmp_path, monkeypatch):
    """Its code cells run one after the other in one namespace, and it is stored without outputs."""
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown" and len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"{notebook.name}:{cell['id']}", "exec"), names)


def test_there_are_three_notebooks():
    assert len(NOTEBOOKS) == 3
