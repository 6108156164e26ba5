"""A router on a pretrained VLM, end to end on drawn scenes: what unseen damage does without it, with it, and trained.

    python benchmarks/vlm_router.py --output outputs/vlm_router_bench

A tiny LLaVA (shipped tower and language model, new projector) learns to answer questions about drawn scenes. Then
`poise fit-router` gives it a router by one pass over its training images and their tags, `poise sft --config
vlm_router` trains router, soft prompt and LoRA, and `poise robustness` asks all three the same questions while the
image or the tags fail in ways that none of them has seen. What is there already is not made again.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaForCausalLM
from transformers.optimization import get_cosine_schedule_with_warmup
from transformers.utils import logging

from poise.command_line import main as poise
from poise.evaluation.probing.parts import model_parts
from poise.processing.batching.collators import IGNORED
from poise.processing.scenes.scenes import Scenes
from poise.training.vlm_router.answer_collator import AnswerCollator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "any_vlm"))
from tiny_folders import BACKBONES, llava  # noqa: E402

DAMAGE = ("noise", "blur", "occlusion", "tags_invented")
SEVERITIES = (3, 5)


def tiny_llava(folder: Path, steps: int, batch: int = 16) -> None:
    """Trains a LLaVA on drawn scenes: projector and language model, the tower stays as it is."""
    model = AutoModelForImageTextToText.from_pretrained(llava(folder, text=BACKBONES / "causal_lm"))
    processor = AutoProcessor.from_pretrained(folder)
    language = LlamaForCausalLM.from_pretrained(BACKBONES / "causal_lm")
    language.resize_token_embeddings(model.config.text_config.vocab_size, mean_resizing=False)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.model.vision_tower.requires_grad_(False)
    scenes = Scenes("train", size=steps * batch, tasks=("vqa",))
    collator = AnswerCollator(model_parts(model), processor)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    with tqdm(range(steps), desc="tiny LLaVA", file=sys.stderr) as bar:
        for step in bar:
            records = scenes.__getitems__(list(range(step * batch, (step + 1) * batch)))
            inputs = collator([{**record, "tags": []} for record in records])
            labels = inputs.pop("labels")  # (B, T)
            logits = model.train()(**inputs).logits[:, :-1]  # (B, T - 1, V)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval().save_pretrained(folder)


def run(*words: object) -> None:
    """A command of Poise; its figures are read from its files."""
    if poise([str(word) for word in words]) != 0:
        raise SystemExit(1)


def scores(model: Path, folder: Path, samples: int) -> dict[str, float]:
    if not (folder / "robustness.json").is_file():
        run("robustness", model, "--data", "scenes:test,tasks=vqa", "--samples", samples, "--output", folder,
            "--degradations", *DAMAGE, "--severities", *SEVERITIES, "--tags", "none", "--batch-size", 32,
            "--max-new-tokens", 6, "--device", "cpu")  # fmt: skip
    return json.loads((folder / "robustness.json").read_text(encoding="utf-8"))["scores"]


def trained_and_asked(folder: Path, seed: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Scores of a tiny LLaVA as it is, with a router that was fitted, and with one that was trained."""
    encoder, vlm = BACKBONES / "tag_encoder", folder / "llava"
    if not (folder / "trained").is_file():
        torch.manual_seed(seed)
        tiny_llava(vlm, arguments.steps)
        (folder / "trained").write_text("the tiny LLaVA is finished\n", encoding="utf-8")
    if not (folder / "fitted" / "config.json").is_file():
        run("fit-router", vlm, "--data", "scenes:train,size=600,tasks=vqa", "--tag-encoder", encoder,
            "--output", folder / "fitted", "--device", "cpu")  # fmt: skip
    if not (folder / "sft" / "model").is_dir():
        run("sft", "--config", "vlm_router", "--vlm", vlm, "--tag_encoder", encoder, "--data",
            f"scenes:train,size={8 * arguments.router_steps},tasks=vqa", "--max_steps", arguments.router_steps,
            "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 1, "--use_cpu", "true",
            "--save_strategy", "no", "--seed", seed, "--output_dir", folder / "sft", "--overwrite")  # fmt: skip
    models = {"as it is": vlm, "router, fitted": folder / "fitted", "router, trained": folder / "sft" / "model"}
    return {name: scores(model, folder / f"robustness-{model.parent.name}-{model.name}", arguments.samples)
            for name, model in models.items()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/vlm_router_bench"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=600, metavar="N", help="of the tiny LLaVA (default 600)")
    parser.add_argument("--router-steps", type=int, default=900, metavar="N", help="of its router (default 900)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of both trainings (default 0)")
    parser.add_argument("--samples", type=int, default=150, metavar="N", help="questions (default 150)")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    found = [trained_and_asked(arguments.output / f"seed-{n}", n, arguments) for n in arguments.seeds]
    cells = ["clean", *(f"{name}_{severity}" for name in DAMAGE for severity in SEVERITIES)]
    print(f"{'VQA accuracy':<18}" + "".join(f"{name:>18}" for name in found[0]) + "   trained - as it is, by seed")
    for cell in cells:
        means = [sum(seed[name][cell] for seed in found) / len(found) for name in found[0]]
        gains = [seed["router, trained"][cell] - seed["as it is"][cell] for seed in found]
        print(f"{cell:<18}" + "".join(f"{m:>18.3f}" for m in means) + "   " + " ".join(f"{g:+.3f}" for g in gains))


if __name__ == "__main__":
    main()
