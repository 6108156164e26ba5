"""A training step on a GPU: `python benchmarks/gpu_step.py` (`--smoke` runs tiny shapes on a CPU, for the code's sake).

SigLIP-B/16 with language models of 135M and 1.7B shapes, random weights: samples a second and peak memory of

    full bf16     every weight of the language model learns, AdamW
    lora bf16     adapters and new modules learn, the rest is frozen
    lora nf4      the same, the language model in 4 bits (double quantization)

each eager and compiled (`torch.compile` of the language model), and the ratios to full bf16.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers import logging as transformers_logging

from poise.command_line import quiet_libraries
from poise.modeling import PoiseForConditionalGeneration
from poise.training.backbone_loading import tiny_backbone_path
from poise.training.parameter_groups import set_trainable
from poise.training.sft.assembly import add_adapters, quantization_config
from poise.training.sft.recipe import SftLora

# Hidden size, feed-forward size, layers, heads, key-value heads, vocabulary.
TEXT = {
    "135m": (576, 1536, 30, 9, 3, 49152),
    "1.7b": (2048, 8192, 24, 32, 32, 49152),
    "tiny": (64, 128, 2, 2, 2, 128),
}
MODES = ("full bf16", "lora bf16", "lora nf4")


def write_backbones(folder: Path, text: str, tiny: bool) -> dict[str, str]:
    """Random backbones, saved so that they are loaded (and quantized) as real ones are."""
    torch.manual_seed(0)
    hidden, inner, layers, heads, groups, words = TEXT[text]
    vision = SiglipVisionConfig(
        hidden_size=64 if tiny else 768, intermediate_size=128 if tiny else 3072, num_hidden_layers=2 if tiny else 12,
        num_attention_heads=2 if tiny else 12, patch_size=16, image_size=48 if tiny else 224, vision_use_head=False,
    )  # fmt: skip
    language = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, vocab_size=words, tie_word_embeddings=True, pad_token_id=0, eos_token_id=0,
    )  # fmt: skip
    tags = BertConfig(
        vocab_size=128 if tiny else 30522, hidden_size=64 if tiny else 384, num_hidden_layers=2 if tiny else 6,
        num_attention_heads=2 if tiny else 12, intermediate_size=128 if tiny else 1536,
    )  # fmt: skip
    models = {
        "vision": SiglipVisionModel(vision),
        "text": AutoModelForCausalLM.from_config(language, dtype=torch.bfloat16),
        "tag_encoder": BertModel(tags),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    # A model is assembled with the id of its tokenizer's placeholder; which words the others are does not matter here.
    AutoTokenizer.from_pretrained(tiny_backbone_path("causal_lm")).save_pretrained(folder / "text")
    return {name: str(folder / name) for name in models}


def build(paths: dict[str, str], mode: str, device: str) -> tuple[torch.nn.Module, int]:
    """The model in training mode, and its number of placeholder tokens an image."""
    torch.manual_seed(0)
    model = PoiseForConditionalGeneration.from_backbones(
        **paths, dtype=torch.bfloat16, soft_prompt_length=8, router_type="reliability",
        quantization_config=quantization_config("nf4" if mode == "lora nf4" else "none", torch.bfloat16),
    )  # fmt: skip
    run = model.config.num_image_tokens + model.config.num_prompt_tokens
    if mode == "full bf16":
        set_trainable(model, ["new_modules"])
        model.model.language_model.requires_grad_(True)
        trained: Any = model
    else:
        trained = add_adapters(model, SftLora.read("lora", {"r": 16, "alpha": 32}), train_tag_encoder=False)
        set_trainable(trained, ["new_modules", "adapters"])
    return trained.to(device).train(), run


def batch_of(model: torch.nn.Module, run: int, size: int, length: int, device: str) -> dict[str, torch.Tensor]:
    config = model.config
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(8, config.text_config.vocab_size, (size, length), generator=generator)  # (B, Q)
    words[words == config.image_token_id] = config.image_token_id - 1
    ids = torch.cat([torch.full((size, run), config.image_token_id), words], dim=1)  # (B, T)
    labels = ids.clone()
    labels[:, : run + length // 2] = -100
    tags = torch.randint(8, config.tag_encoder_config.vocab_size, (size, 24), generator=generator)  # (B, L)
    side = config.vision_config.image_size
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "pixel_values": torch.randn(size, 3, side, side, generator=generator),
        "tag_input_ids": tags, "tag_attention_mask": torch.ones_like(tags), "tag_scores": torch.rand(size, 24),
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in batch.items()}


def measure(model: torch.nn.Module, batch: dict[str, torch.Tensor], steps: int, device: str) -> tuple[float, float]:
    """(samples a second, peak bytes) of forward, backward and optimizer."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):  # compilation, and the optimizer's own memory
        step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return steps * len(batch["input_ids"]) / seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="+", choices=TEXT, default=["135m", "1.7b"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="text tokens a sample")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU; its figures mean nothing")
    options = parser.parse_args()
    quiet_libraries()
    transformers_logging.set_verbosity_error()
    if options.smoke:
        options.text, options.batch, options.length, options.steps = ["tiny"], 2, 8, 1
    elif not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_step.py needs a GPU: none is here (--smoke runs tiny shapes on a CPU)")
    device = "cpu" if options.smoke else "cuda"
    name = "CPU, a smoke test: these figures mean nothing" if options.smoke else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {name}, batch {options.batch}, {options.length} text tokens")
    print(f"{'language model':16}{'mode':12}{'compiled':>9}{'samples/s':>11}{'peak MB':>10}{'speed':>8}{'memory':>8}")
    for text in options.text:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_backbones(Path(folder), text, tiny=options.smoke)
            first: tuple[float, float] | None = None
            for mode in MODES:
                for compiled in (False,) if options.smoke else (False, True):
                    model, run = build(paths, mode, device)
                    batch = batch_of(model, run, options.batch, options.length, device)
                    if compiled:
                        base = model.get_base_model() if hasattr(model, "get_base_model") else model
                        base.model.language_model.compile()
                    rate, peak = measure(model, batch, options.steps, device)
                    first = first or (rate, peak)
                    print(
                        f"{text:16}{mode:12}{'yes' if compiled else 'no':>9}{rate:11.1f}{peak / 1e6:10.0f}"
                        f"{rate / first[0]:7.2f}x{peak / first[1]:7.2f}x",
                        flush=True,
                    )
                    del model, batch
                    if device == "cuda":
                        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
