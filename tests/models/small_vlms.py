"""Vision-language models of random weights with their processors: Poise around Llama and around T5, and LLaVA."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    T5Config,
)

from poise.evaluation.probing.parts import ModelParts, model_parts
from poise.evaluation.probing.prompt_batch import PromptBatch
from poise.evaluation.probing.prompt_reading import read_prompts
from poise.modeling import PoiseConfig, PoiseForConditionalGeneration
from poise.processing import PoiseProcessor
from poise.processing.chat_templates import choose_chat_template

KINDS = ("llama", "t5", "llava")
WORDS = (
    "question answer tags : , . ? what color is the a an dog ball cat red blue green in this image there yes no "
    "describe sentence one USER ASSISTANT"
)
QUESTIONS = ("what color is the dog ?", "is the red ball there ?", "what is this ?")
TAGS = ([("dog", 0.9), ("red ball", 0.4)], [("cat", 0.5)], [])
SIDE, PATCH = 24, 8
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def word_tokenizer(encoder_decoder: bool = False) -> PreTrainedTokenizerFast:
    """One token a word."""
    names = ["<pad>", "<unk>", "<s>", "</s>", *WORDS.split()]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if encoder_decoder:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    settings = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "image_token": "<image>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **settings)


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Of BERT's make, for tags."""
    names = "[PAD] [UNK] [CLS] [SEP] dog ball cat red blue , .".split()
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


@dataclass(frozen=True)
class SmallVLM:
    """A model, its processor, and its parts."""

    kind: str
    model: Any
    processor: Any

    @property
    def parts(self) -> ModelParts:
        return model_parts(self.model)

    def prompts(self, count: int = 2, with_tags: bool = True) -> PromptBatch:
        """`count` questions of unequal length about different images."""
        tags = TAGS if with_tags and self.kind != "llava" else ([], [], [])
        return read_prompts(self.parts, self.processor, noise_images(count), QUESTIONS[:count], tags[:count])

    def full_inputs(self, count: int = 2, **decoder: Any) -> dict[str, Any]:
        """The same prompts, ready for the model's own forward."""
        inputs = {**self.prompts(count).forward_inputs(), **decoder}
        if self.kind == "t5":
            return {**inputs, "decoder_input_ids": torch.tensor([[0, 7, 9]] * count)}
        return inputs


def image_tokens(prompts: PromptBatch, numbers: Any) -> torch.Tensor:
    """Some of every prompt's image tokens by their numbers, as places (B, T) bool."""
    places = torch.zeros_like(prompts.image)
    for row, some in enumerate(prompts.image):
        places[row, some.nonzero()[list(numbers), 0]] = True
    return places


@cache
def small_vlm(kind: str, num_layers: int = 3, router_type: str = "none") -> SmallVLM:
    """The same model in every test: leave it as it was."""
    torch.manual_seed(1)
    tokenizer = word_tokenizer(kind == "t5")
    shape = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 3}
    if kind == "t5":
        text: Any = T5Config(
            d_model=48, d_ff=64, d_kv=12, num_layers=2, num_decoder_layers=num_layers, num_heads=4,
            decoder_start_token_id=0, dropout_rate=0.0, **shape,
        )  # fmt: skip
    else:
        text = LlamaConfig(
            hidden_size=48, intermediate_size=64, num_hidden_layers=num_layers, num_attention_heads=4,
            num_key_value_heads=2, bos_token_id=2, initializer_range=0.2, max_position_embeddings=256, **shape,
        )  # fmt: skip
    model = _llava(text, tokenizer) if kind == "llava" else _poise(text, tokenizer, router_type)
    # Words only, and some: models of random weights would answer with nothing, or with an image.
    model.generation_config.suppress_tokens = [tokenizer.convert_tokens_to_ids("<image>"), 0, 1, 3]
    processor = _llava_processor(tokenizer) if kind == "llava" else _poise_processor(model, tokenizer)
    return SmallVLM(kind, model.eval(), processor)


def poise_around(text_config_class: Any, **shape: Any) -> SmallVLM:
    """A Poise model around a language model of another family; `shape` in that family's words."""
    torch.manual_seed(1)
    tokenizer = word_tokenizer()
    text = text_config_class(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=3, bos_token_id=2, **shape)
    model = _poise(text, tokenizer)
    model.generation_config.suppress_tokens = [tokenizer.convert_tokens_to_ids("<image>"), 0, 1, 3]
    return SmallVLM(text.model_type, model.eval(), _poise_processor(model, tokenizer))


def _poise(text: Any, tokenizer: Any, router_type: str = "none") -> PoiseForConditionalGeneration:
    tower = SiglipVisionConfig(**_TOWER, vision_use_head=False)
    tags = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config = PoiseConfig(
        vision_config=tower,
        text_config=text,
        tag_encoder_config=tags,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        soft_prompt_length=2,
        router_type=router_type,
    )
    model = PoiseForConditionalGeneration(config)
    with torch.no_grad():  # as after training: large enough to matter
        for module in (model.model.projector, model.model.soft_prompt):
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def _poise_processor(model: Any, tokenizer: Any) -> PoiseProcessor:
    if not model.config.is_encoder_decoder:
        tokenizer.padding_side = "left"
    return PoiseProcessor(
        SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        piece_tokenizer(),
        chat_template=choose_chat_template(tokenizer, name="question_answer"),
        num_image_tokens=model.config.num_image_tokens,
        num_prompt_tokens=model.config.num_prompt_tokens,
        tag_score_encoding=model.config.tag_score_encoding,
    )


def _llava(text: Any, tokenizer: Any) -> LlavaForConditionalGeneration:
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIPVisionConfig(**_TOWER), text_config=text, image_token_id=image_token)
    )
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def _llava_processor(tokenizer: Any) -> LlavaProcessor:
    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="USER : <image> {{ messages[0].content[1].text }} ASSISTANT :",
    )


def noise_images(count: int, width: int = 40, height: int = 30, seed: int = 0) -> list[Image.Image]:
    """Images of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def object_records(count: int = 5) -> list[dict[str, Any]]:
    """Task records with a box each, about noise."""
    names = ("dog", "red ball", "cat")
    return [
        {
            "id": f"r{number}",
            "image": image,
            "task": "vqa",
            "question": QUESTIONS[number % 3],
            "answers": ["red"],
            "bbox": [12 + number % 3, 8, 9, 7],
            "tags": TAGS[number % 3],
            "metadata": {"object": names[number % 3]},
        }
        for number, image in enumerate(noise_images(count, seed=5))
    ]
