"""What a training step costs, as ratios in one run: `python benchmarks/training.py`.

1. Samples a second of supervised fine-tuning, against transformers' LLaVA under the plain `Trainer`: the same vision
   tower and language model (random weights), the same LoRA, batch and images; uncached and with the feature cache.
   Rounds of all systems take turns, each step is timed from end to end with its data, in processor time of one thread,
   and medians are compared.
2. Peak memory of each, in a process of its own.
3. Projector and router, forward and backward, against the number of image tokens.

The shapes are those of real backbones, cut in depth and vocabulary by the same factor (`--depth`), so that their costs
keep their proportions on a CPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PrinterCallback,
    SiglipImageProcessor,
    SiglipVisionConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers import logging as transformers_logging

from poise.command_line import quiet_libraries
from poise.modeling import PoiseConfig, PoiseForConditionalGeneration
from poise.processing import PoiseProcessor, Prompts
from poise.processing.scenes.scenes import Scenes
from poise.training.backbone_loading import tiny_backbone_path
from poise.training.feature_cache.frozen_towers import cached_records
from poise.training.parameter_groups import set_trainable
from poise.training.sft.assembly import add_adapters
from poise.training.sft.recipe import SftLora
from poise.training.sft.trainer import PoiseTrainer

# (hidden size, feed-forward size, layers, heads, patch size, image size) and (…, key-value heads, vocabulary)
VISION = {"siglip-b": (768, 3072, 12, 12, 16, 224), "so400m": (1152, 4304, 27, 16, 14, 224)}
TEXT = {"135m": (576, 1536, 30, 9, 3, 49152)}
SYSTEMS = ("llava", "plain poise", "poise", "poise, cached")
RATES = {"new_modules": 1e-3, "adapters": 2e-4}
LORA = SftLora.read("lora", {"r": 8, "alpha": 16})


def vision_config(name: str, depth: int) -> SiglipVisionConfig:
    hidden, inner, layers, heads, patch, size = VISION[name]
    return SiglipVisionConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=max(1, layers // depth),
        num_attention_heads=heads, patch_size=patch, image_size=size, vision_use_head=False,
    )  # fmt: skip


def text_config(name: str, depth: int, tokenizer: Any) -> LlamaConfig:
    hidden, inner, layers, heads, groups, words = TEXT[name]
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=max(1, layers // depth),
        num_attention_heads=heads, num_key_value_heads=groups, vocab_size=max(words // depth, len(tokenizer)),
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


class Setting:
    """Shapes, batch and data that all systems share."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_path("causal_lm"), image_token="<image>")
        self.vision = vision_config(options.vision, options.depth)
        self.text = text_config(options.text, options.depth, self.tokenizer)
        size = self.vision.image_size
        self.image_processor = SiglipImageProcessor(size={"height": size, "width": size})
        self.image_tokens = (size // self.vision.patch_size) ** 2
        self.records = Scenes("train", size=options.batch * (options.steps + 1), tasks=("vqa",))

    def arguments(self, folder: str) -> TrainingArguments:
        return TrainingArguments(
            folder, max_steps=self.options.steps + 1, per_device_train_batch_size=self.options.batch, report_to="none",
            save_strategy="no", disable_tqdm=True, use_cpu=True, remove_unused_columns=False, logging_strategy="no",
            learning_rate=1e-3,
        )  # fmt: skip


class StepTimes(TrainerCallback):
    """
    Seconds from the end of one step to the end of the next, data included; the first step warms up. Processor time of
    one thread, with the data made in the same process: other processes do not count.
    """

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


class LlavaCollator:
    """The same prompts, through LLaVA's own processor; labels on the answer."""

    def __init__(self, setting: Setting):
        self.processor = LlavaProcessor(
            setting.image_processor, setting.tokenizer, patch_size=setting.vision.patch_size,
            vision_feature_select_strategy="full", num_additional_image_tokens=0,
        )  # fmt: skip
        self.tokenizer = setting.tokenizer
        self.template = PoiseProcessor(
            setting.image_processor, setting.tokenizer, None, num_image_tokens=1, tag_words=False
        )

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        chats = [Prompts().messages(record) for record in records]
        prompts = self.template.apply_chat_template(chats, add_generation_prompt=True)
        texts = [f"{prompt} {record['answers'][0]}" for prompt, record in zip(prompts, records, strict=True)]
        images = [record["image"] for record in records]
        batch = self.processor(images=images, text=texts, padding=True, padding_side="right", return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], -100)  # (B, T)
        for row, record in enumerate(records):
            answer = len(self.tokenizer(" " + record["answers"][0], add_special_tokens=False)["input_ids"])
            end = int(batch["attention_mask"][row].sum())
            labels[row, end - answer : end] = batch["input_ids"][row, end - answer : end]
        batch.pop("token_type_ids", None)
        return {**batch, "labels": labels}


def llava_trainer(setting: Setting, folder: str) -> Trainer:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=setting.vision, text_config=setting.text, vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_token_index=setting.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=setting.image_tokens,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    lora = LoraConfig(
        r=LORA["r"], lora_alpha=LORA["alpha"], modules_to_save=["multi_modal_projector"],
        target_modules=r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj",
    )  # fmt: skip
    return Trainer(
        get_peft_model(model, lora), setting.arguments(folder), data_collator=LlavaCollator(setting),
        train_dataset=setting.records,
    )  # fmt: skip


def poise_trainer(setting: Setting, folder: str, system: str) -> PoiseTrainer:
    torch.manual_seed(0)
    bare = system == "plain poise"
    tag_tokenizer = None if bare else AutoTokenizer.from_pretrained(tiny_backbone_path("tag_encoder"))
    streams = {"soft_prompt_type": "none", "router_type": "none"}
    if not bare:
        # The shape of MiniLM-L6, a common sentence encoder.
        encoder = BertConfig(
            vocab_size=len(tag_tokenizer), hidden_size=384, num_hidden_layers=max(1, 6 // setting.options.depth),
            num_attention_heads=12, intermediate_size=1536, max_position_embeddings=512,
        )  # fmt: skip
        streams = {"tag_encoder_config": encoder, "soft_prompt_length": 8, "router_type": "reliability"}
    config = PoiseConfig(
        vision_config=setting.vision, text_config=setting.text,
        image_token_id=setting.tokenizer.convert_tokens_to_ids("<image>"), **streams,
    )  # fmt: skip
    model = PoiseForConditionalGeneration(config)
    model.freeze_backbones()
    processor = PoiseProcessor(
        setting.image_processor, setting.tokenizer, tag_tokenizer, num_image_tokens=config.num_image_tokens,
        num_prompt_tokens=config.num_prompt_tokens, tag_words=False,
    )  # fmt: skip
    trained = add_adapters(model, LORA, train_tag_encoder=False)
    set_trainable(trained, RATES)
    arguments, records = setting.arguments(folder), setting.records
    if system == "poise, cached":
        records = cached_records(records, trained, processor, arguments, {"feature_cache": True})
    return PoiseTrainer(trained, arguments, processor, RATES, train_dataset=records)


def trainer_of(system: str, setting: Setting, folder: str) -> Trainer:
    return llava_trainer(setting, folder) if system == "llava" else poise_trainer(setting, folder, system)


def measure(trainer: Trainer) -> list[float]:
    times = StepTimes()
    trainer.add_callback(times)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.remove_callback(times)
    return times.seconds


def throughput(setting: Setting, options: argparse.Namespace) -> None:
    folders = [tempfile.TemporaryDirectory() for _ in SYSTEMS]
    trainers = {s: trainer_of(s, setting, folder.name) for s, folder in zip(SYSTEMS, folders, strict=True)}
    rounds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    for _ in range(options.rounds):
        for system, trainer in trainers.items():  # in turn: whatever else the machine does falls on all of them
            rounds[system].append(statistics.median(measure(trainer)))
    print(f"{'':16}{'samples/s':>10}{'ratio to llava':>16}{'to uncached':>13}")
    for system in SYSTEMS:
        ratio = statistics.median(a / b for a, b in zip(rounds["llava"], rounds[system], strict=True))
        uncached = statistics.median(a / b for a, b in zip(rounds["poise"], rounds[system], strict=True))
        shown = f"{uncached:12.2f}x" if system == "poise, cached" else " " * 13
        rate = options.batch / statistics.median(rounds[system])
        print(f"{system:16}{rate:10.2f}{ratio:15.2f}x{shown}", flush=True)
    for folder in folders:
        folder.cleanup()


def peak_memory(system: str, options: argparse.Namespace) -> int:
    """Bytes that a process which trains needs at its peak, beyond what it needs for its imports."""
    words = [sys.executable, __file__, "--only", system, "--steps", "2", "--batch", str(options.batch),
             "--depth", str(options.depth), "--vision", options.vision, "--text", options.text]  # fmt: skip
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1])


def only(system: str, setting: Setting) -> None:
    before = most_memory()
    with tempfile.TemporaryDirectory() as folder:
        measure(trainer_of(system, setting, folder))
    print(most_memory() - before)


def most_memory() -> int:
    """Bytes in memory at this process's peak (`ru_maxrss` would start with what the parent had)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("peak memory is read from /proc/self/status, which this system does not have: --no-memory")


def image_token_cost(repeats: int) -> None:
    """Projector and router, forward and backward, per number of image tokens; linear means a constant last column."""
    print("projector + router, forward and backward, 8 prompt tokens, D = 576, batch 4")
    print(f"{'router':14}{'image tokens':>13}{'ms':>9}{'µs a token':>12}")
    for router in ("none", "gate", "channel", "reliability"):
        for side in (8, 16, 24, 32):
            config = PoiseConfig(
                vision_config=SiglipVisionConfig(
                    hidden_size=768, num_hidden_layers=1, num_attention_heads=12, patch_size=16, image_size=16 * side
                ),
                text_config=LlamaConfig(
                    hidden_size=576, num_hidden_layers=1, num_attention_heads=9, num_key_value_heads=3, vocab_size=128,
                    intermediate_size=64,
                ),
                soft_prompt_type="static", soft_prompt_length=8, router_type=router, image_token_id=5,
            )  # fmt: skip
            torch.manual_seed(0)
            model = PoiseForConditionalGeneration(config).model.train()
            features = torch.randn(4, 1, side * side, 768)  # (N, S, P, Dv)
            profile = torch.randn(4, 12)  # (N, 6L)

            def step(model=model, features=features, profile=profile):
                made = model.get_image_features(vision_features=features, image_profile=profile, return_dict=True)
                torch.stack(made.pooler_output).square().mean().backward()

            step()
            times = []
            for _ in range(repeats):
                start = time.process_time()
                step()
                times.append(time.process_time() - start)
            best = min(times)  # whatever else a machine does can only add to a time
            print(f"{router:14}{side * side:13}{best * 1e3:9.1f}{best * 1e6 / (4 * side * side):12.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vision", choices=VISION, default="siglip-b")
    parser.add_argument("--text", choices=TEXT, default="135m")
    parser.add_argument("--depth", type=int, default=6, help="layers and vocabulary are cut by this factor")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--only", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    setting = Setting(options)
    if options.only:
        only(options.only, setting)
        return
    print(
        json.dumps(
            {"torch": torch.__version__, "threads": 1, **{k: v for k, v in vars(options).items() if k != "only"}}
        )
    )
    print(
        f"{options.vision}: {setting.vision.num_hidden_layers} layers, {setting.image_tokens} image tokens; "
        f"{options.text}: {setting.text.num_hidden_layers} layers, vocabulary {setting.text.vocab_size}",
        flush=True,
    )
    throughput(setting, options)
    if options.memory:
        print("peak memory of training, beyond the imports")
        for system in SYSTEMS:
            print(f"{system:16}{peak_memory(system, options) / 1e6:10.0f} MB", flush=True)
    image_token_cost(repeats=options.rounds)


if __name__ == "__main__":
    main()
