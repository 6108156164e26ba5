"""The four tiny backbones that ship with Poise, and the command that rebuilds and checks them: `poise backbones`.

Each was pretrained on one modality alone, from the embedded scenes: a vision tower on pixels and its own labels, a
decoder-only and an encoder-decoder language model and a tag encoder on words. They stand in for SigLIP, SmolLM2,
Flan-T5 and BERT where nothing may be downloaded: in the demo, in the study of dominance, in tests.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from ..backbone_loading import tiny_backbone_path
from .language_models import check_language_model, train_language_model
from .tag_encoder import check_tag_encoder, train_tag_encoder
from .vision_tower import image_processor, probe_accuracy, train_vision_tower

#: Backbone → training steps, of 64 scenes or tag lists, or of 32 documents.
STEPS = {"vision": 1800, "causal_lm": 8000, "seq2seq_lm": 7000, "tag_encoder": 600}

_WHAT = {
    "vision": "A vision tower (`SiglipVisionModel`, 48×48 pixels in patches of 8: 36 tokens of width 96, 4 layers). It "
    "was trained to tell, from each patch token, shape, colour and place of what lies in the patch's grid cell, on "
    "clean scenes without a prior.",
    "causal_lm": "A decoder-only language model (`LlamaForCausalLM`, width 96, 4 layers). It was trained on scenes in "
    "words, whose questions follow the prior with strength 0.9, and never with an image.",
    "seq2seq_lm": "An encoder-decoder language model (`T5ForConditionalGeneration`, width 96, 2 + 2 layers). It was "
    "trained on scenes in words, whose questions follow the prior with strength 0.9, and never with an image.",
    "tag_encoder": "A tag encoder (`BertModel`, width 64, 2 layers). It was trained by masked words on tag lists with "
    "and without scores and on captions of scenes.",
}
_MEANING = {
    "shape_probe": "shape of occupied cells read by a linear probe from single patch tokens",
    "color_probe": "colour of occupied cells read by a linear probe from single patch tokens",
    "empty_probe": "empty cells recognized by the shape probe",
    "prior": "colour and shape questions without context answered with the prior",
    "caption_read": "the same questions answered from a caption that contradicts the prior",
    "tags_read": "the same questions answered from clean tags that contradict the prior",
    "caption_read_all": "all types of question answered from a caption with places",
}


def build_backbone(name: str, folder: Path, steps: int | None = None, seed: int = 0) -> dict:
    """Pretrains one backbone, saves it with tokenizer or image processor and README; returns what `check` measures."""
    steps = STEPS[name] if steps is None else steps
    if name == "vision":
        model, _ = train_vision_tower(steps, seed)
        companion = image_processor()
    elif name == "tag_encoder":
        masked_model, companion = train_tag_encoder(steps, seed)
        model = masked_model.bert
    else:
        model, companion = train_language_model(name == "seq2seq_lm", steps, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    companion.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only, but a package's data are for everyone
    figures = check_backbone(name, folder)
    (folder / "README.md").write_text(_readme(name, steps, seed, figures), encoding="utf-8")
    return figures


def check_backbone(name: str, folder: str | Path | None = None) -> dict:
    """Measures a saved backbone (the shipped one by default) on its own modality; see the checks of each module."""
    folder = tiny_backbone_path(name) if folder is None else folder
    if name == "vision":
        return probe_accuracy(AutoModel.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if name == "tag_encoder":
        return check_tag_encoder(AutoModel.from_pretrained(folder), tokenizer)
    auto = AutoModelForSeq2SeqLM if name == "seq2seq_lm" else AutoModelForCausalLM
    return check_language_model(auto.from_pretrained(folder), tokenizer)


def _readme(name: str, steps: int, seed: int, figures: dict) -> str:
    meaning = dict(_MEANING)
    if name == "tag_encoder":
        meaning = {
            key: f"{key.split('_')[0]}s named by the tags, read by a linear probe of the mean token" for key in figures
        }
    rows = "\n".join(f"| `{key}` | {value:.3f} | {meaning[key]} |" for key, value in figures.items())
    return f"""\
---
library_name: transformers
license: apache-2.0
---

# Poise tiny backbone: {name}

{_WHAT[name]}

Made by `poise backbones --out DIR --only {name} --seed {seed} --steps {steps}`.
Measured by `poise backbones --check --only {name}`:

| figure | value | meaning |
|---|---|---|
{rows}

It knows nothing but coloured shapes; it is made for the demo, the study and the tests of Poise.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poise backbones", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder that receives one sub-folder per backbone")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS), help="which to build or check")
    parser.add_argument("--steps", type=int, help="training steps, for a quicker and weaker build")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="backbones built at once, one core each (default 2)")
    parser.add_argument(
        "--check", action="store_true", help="build nothing; measure the shipped ones or those in --out"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command `poise backbones`: rebuilds the tiny backbones into a folder, or checks built ones."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not arguments.check and arguments.out is None:
        parser.error("--out is missing: name a folder for the backbones, or use --check to measure the shipped ones")
    if arguments.steps is not None and arguments.steps < 1:
        parser.error(f"--steps={arguments.steps} trains nothing: use 1 or more")
    if arguments.jobs < 1:
        parser.error(f"--jobs={arguments.jobs} does nothing: use 1 or more")
    if arguments.out is not None and arguments.out.is_file():
        parser.error(f"--out={arguments.out} is a file: name a folder")
    work = []
    for name in sorted(arguments.only, key=STEPS.__getitem__, reverse=True):  # the longest first
        folder = arguments.out / name if arguments.out is not None else Path(tiny_backbone_path(name))
        work.append((name, folder, arguments.check, arguments.steps, arguments.seed))
    results: Iterator[dict] = map(_measured, work)
    if not arguments.check and arguments.jobs > 1 and len(work) > 1:
        # Processes of their own: at this size a second thread in one process waits more than it works.
        pool = ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn"))
        results = pool.map(_measured, work)
    for (name, *_), figures in zip(work, results, strict=True):
        rounded = {key: round(value, 4) for key, value in figures.items()}
        sys.stdout.write(json.dumps({"backbone": name, **rounded}) + "\n")
        sys.stdout.flush()
    return 0


def _measured(work: tuple[str, Path, bool, int | None, int]) -> dict:
    """Builds or checks one backbone, on one thread."""
    name, folder, only_check, steps, seed = work
    torch.set_num_threads(1)
    return check_backbone(name, folder) if only_check else build_backbone(name, folder, steps, seed)
