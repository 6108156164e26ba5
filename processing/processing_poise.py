"""The processor: images, prompts and tags in; what the model reads out."""

import os
from typing import Any

from transformers import BatchFeature
from transformers.processing_utils import MultiModalData
from transformers.utils import logging

from .backbone_processors import parts_of_backbones
from .conversations import tags_and_tasks
from .image_loading import MAX_PIXELS, flat_image_list
from .processor_saving import SavedWithTagParts
from .questions import TurnFrame, questions_of_images, tokenize_questions
from .tag_tokens import SCORE_ENCODINGS, tag_prompt_words, tokenize_tags
from .tags import Tag, check_tags_of_images
from .text_truncation import tokenize_truncated

logger = logging.get_logger(__name__)

TAG_INPUTS = ("tag_input_ids", "tag_attention_mask", "tag_scores")
QUESTION_INPUTS = ("question_input_ids", "question_attention_mask")
USUAL_PATCH = 16  # of most vision towers, where nobody says how many tokens an image has
_CUTTING = (True, "longest_first", "only_first")


class PoiseProcessor(SavedWithTagParts):
    r"""
    Turns images, prompts and tags into the inputs of `PoiseForConditionalGeneration`.

    Every `<image>` of a prompt becomes `num_image_tokens + num_prompt_tokens` placeholders, one for each image token
    and each soft-prompt token of that image. With `tag_words` the names of the image's tags follow as words:
    `"tags : dog , ball ."`.

    Args:
        image_processor: the vision tower's image processor; the ones that need only PIL will do.
        tokenizer: the language model's tokenizer, which must know `image_token`.
        tag_tokenizer (*optional*):
            The tag encoder's tokenizer (a fast one). Without it tags are words of the prompt or nothing.
        chat_template (`str`, *optional*): how messages become a prompt; the tokenizer's own by default.
        num_image_tokens (`int`, *optional*): image tokens of one image, the model's `config.num_image_tokens`; by
            default those of a tower with patches of 16 pixels and no class token.
        num_prompt_tokens (`int`, *optional*, defaults to 0): the model's `config.num_prompt_tokens`.
        tag_score_encoding (`str`, *optional*, defaults to `"attention_bias"`):
            How scores reach the tag encoder: `"text"` writes them after the names ("dog 0.97"); `"embedding"` and
            `"attention_bias"` leave the text alone, the model reads `tag_scores`.
        tag_words (`bool`, *optional*, defaults to `True`): whether tag names are words of the prompt, too.
        max_tags (`int`, *optional*, defaults to 64): of more tags on an image the highest-scoring are kept.
        image_token (`str`, *optional*, defaults to `"<image>"`): the placeholder.
        max_pixels (`int`, *optional*, defaults to 50 megapixels): larger images are refused before they are decoded.
        tasks (`list[str]`, *optional*): names of the tasks that a model with task-routed adapters tells apart.
        question_length (`int`, *optional*): tokens of an image's question, for a model whose router reads it
            (`config.asks_the_question`); without it none are made.
        tag_length (`int`, *optional*): tokens to which the tags of an image are always padded or cut (whole tags), as
            inference engines need it, which put images of different calls into one batch; by default the longest of
            a call.
        tagger ([`DualEncoderTagger`], *optional*): tags the images of a call that brings no tags; saved with the
            processor.

    Raises:
        ValueError: a choice is unknown, a number not positive, or the tokenizer does not know `image_token`.

    Examples:
        >>> processor = PoiseProcessor.from_pretrained("outputs/demo/published")
        >>> text, tags = "<image> what color is the star ?", [("yellow star", 0.9)]
        >>> inputs = processor(images="scene.png", text=text, tags=tags, return_tensors="pt")
        >>> inputs["tag_scores"].shape == inputs["tag_input_ids"].shape  # a score for every token of the tags
        True
    """

    # A model that was not asked for them does not take them; tokenizers of the BERT kind give them unasked.
    text_kwargs = {"return_token_type_ids": False}
    unsaved = (*SavedWithTagParts.unsaved, "_known_frame")

    def __init__(
        self,
        image_processor,
        tokenizer,
        tag_tokenizer=None,
        chat_template=None,
        num_image_tokens=None,
        num_prompt_tokens=0,
        tag_score_encoding="attention_bias",
        tag_words=True,
        max_tags=64,
        image_token="<image>",
        max_pixels=MAX_PIXELS,
        tasks=None,
        question_length=None,
        tag_length=None,
        tagger=None,
    ):
        if num_image_tokens is None:
            size = image_processor.size
            height, width = (size.get(side) or size["shortest_edge"] for side in ("height", "width"))
            num_image_tokens = (height // USUAL_PATCH) * (width // USUAL_PATCH)
        if not isinstance(num_image_tokens, int) or num_image_tokens < 1:
            raise ValueError(f"num_image_tokens={num_image_tokens!r} must be the model's config.num_image_tokens.")
        if num_prompt_tokens < 0:
            raise ValueError(f"num_prompt_tokens={num_prompt_tokens} must be 0 (no soft prompt) or more.")
        if tag_score_encoding not in SCORE_ENCODINGS:
            raise ValueError(
                f"tag_score_encoding={tag_score_encoding!r} is not known: choose one of {SCORE_ENCODINGS}."
            )
        if max_tags < 1:
            raise ValueError(f"max_tags={max_tags} must be at least 1; for a model without tags, give none.")
        for name, length in (("question_length", question_length), ("tag_length", tag_length)):
            if length is not None and length < 1:
                raise ValueError(f"{name}={length} must be at least 1.")
        if tag_tokenizer is not None and not tag_tokenizer.is_fast:
            raise ValueError(
                f"tag_tokenizer={type(tag_tokenizer).__name__} tells no character offsets, which tie scores to tokens: "
                "load it with AutoTokenizer and the `tokenizers` library."
            )
        image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if image_token_id is None or image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"image_token={image_token!r} is not in the tokenizer's vocabulary: load the tokenizer with "
                f"AutoTokenizer.from_pretrained(..., image_token={image_token!r}), or call from_backbones."
            )
        self.tag_tokenizer = tag_tokenizer
        self.num_image_tokens = num_image_tokens
        self.num_prompt_tokens = num_prompt_tokens
        self.tag_score_encoding = tag_score_encoding
        self.tag_words = tag_words
        self.max_tags = max_tags
        self.image_token = image_token
        self.image_token_id = image_token_id
        self.max_pixels = max_pixels
        self.tasks = None if tasks is None else list(tasks)
        self.question_length, self.tag_length = question_length, tag_length
        self.tagger = tagger
        self._known_frame: tuple[Any, TurnFrame] | None = None  # of the chat template at hand
        chat_template = tokenizer.chat_template if chat_template is None else chat_template
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, tags=None, task=None, tag_length=None, **kwargs) -> BatchFeature:
        r"""
        Prepares one sample or a batch.

        Args:
            images: one image or a (nested) list: PIL images, files, addresses, arrays; in reading order of the prompts.
            text (`str` or `list[str]`, *optional*): prompts with one `<image>` for each image.
            tags (`list`, *optional*): per image a list of (name, score) pairs, such as `[[("dog", 0.97)]]`; a name
                alone has score 1. Without any the processor's tagger is asked, if it has one.
            task (`str` or `list[str]`, *optional*): of all prompts or of each, for a model with task-routed adapters;
                the first of `tasks` by default.
            tag_length (`int`, *optional*): as that of the processor, for this call.
            **kwargs: as every transformers processor (`padding`, `truncation`, `max_length`, `return_tensors`, ...).
                `truncation` cuts ordinary text at the tokenizer's `truncation_side`, no placeholder, no special token.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` [B, T], `pixel_values` [N, 3, H, W] over the N images
            of the batch in reading order, and if one of them has tags and there is a tag tokenizer, `tag_input_ids`,
            `tag_attention_mask` and `tag_scores` [N, L] (zero rows for images without tags). With a tag tokenizer and a
            `question_length` also `question_input_ids` and `question_attention_mask` [N, question_length]: what the
            turn that holds the image asks. With a `task`, `task_ids` [B].

        Raises:
            ValueError: images, placeholders and tags do not match in number; a tag or an image is bad; the placeholders
                alone exceed `max_length`.
        """
        if any(kwargs.pop(name, None) is not None for name in ("videos", "audio")):
            raise ValueError("videos and audio are not understood by PoiseProcessor: give images.")
        if self._is_text(images) and not isinstance(text, str):
            images, text = text, images  # called in the order of older processors
        if images is None and text is None:
            raise ValueError("images and text are both None: give at least one of them.")
        images = flat_image_list(images, self.max_pixels)
        if tags is None and images and self.tagger is not None:
            tags = self.tagger(images)
        tags_of_images = [self._kept_tags(tags) for tags in check_tags_of_images(tags, len(images))]
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)

        return_tensors = merged["text_kwargs"].get("return_tensors")

        prompts = [text] if isinstance(text, str) else text
        data: dict[str, Any] = {}
        if prompts is not None:
            data.update(self._tokenized_prompts(prompts, tags_of_images, merged))
        if images:
            data.update(self.image_processor(images, **merged["images_kwargs"]))
        data.update(self._tag_inputs(tags_of_images, return_tensors, tag_length))
        if images and prompts is not None:
            data.update(self._question_inputs(prompts, return_tensors))
        if task is not None:
            num_prompts = 1 if prompts is None else len(prompts)
            data["task_ids"] = self.task_ids([task] * num_prompts if isinstance(task, str) else task, num_prompts)
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def task_ids(self, tasks: list[str], num_prompts: int) -> list[int]:
        """
        Places of task names in `tasks`, one a prompt.

        Raises:
            ValueError: the model tells no tasks apart, not these, or their number is not that of the prompts.
        """
        if self.tasks is None:
            raise ValueError(f"task={tasks[0]!r}: this model tells no tasks apart; leave task out.")
        if len(tasks) != num_prompts:
            raise ValueError(f"task names {len(tasks)} tasks for {num_prompts} prompts: give one for each, or one.")
        for task in tasks:
            if task not in self.tasks:
                raise ValueError(f"task={task!r} is not known: choose one of {', '.join(self.tasks)}.")
        return [self.tasks.index(task) for task in tasks]

    def replace_image_token(self, image_inputs: dict | None = None, image_idx: int = 0, **kwargs) -> str:
        """What one `<image>` becomes: placeholders for the image tokens and the soft-prompt tokens of one image."""
        return self.image_token * (self.num_image_tokens + self.num_prompt_tokens)

    def _kept_tags(self, tags: list[Tag]) -> list[Tag]:
        if len(tags) > self.max_tags:
            logger.warning_once(
                f"An image has more than max_tags={self.max_tags} tags: only the highest-scoring are kept (said once)."
            )
        return tags[: self.max_tags]

    def _tokenized_prompts(self, prompts: list[str], tags_of_images: list[list[Tag]], merged: dict) -> dict[str, Any]:
        """Expands the placeholders of B prompts, adds tag words, tokenizes and truncates."""
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"text={prompts!r} must be a string or a list of strings.")
        expanded, offsets = self._expanded(prompts, tags_of_images)
        text_kwargs = dict(merged["text_kwargs"])
        # Both settings also arrive inside text_kwargs, where transformers still puts them for older callers.
        with_token_types = text_kwargs.pop("return_mm_token_type_ids", merged["return_mm_token_type_ids"])
        with_offsets = text_kwargs.pop("return_text_replacement_offsets", merged["return_text_replacement_offsets"])
        if text_kwargs.get("truncation") in _CUTTING:
            encoded = tokenize_truncated(self.tokenizer, expanded, text_kwargs, self.uncut_token_ids)
        else:
            encoded = self.tokenizer(expanded, **text_kwargs)
        if with_offsets:
            encoded["text_replacement_offsets"] = offsets
        if with_token_types:
            encoded["mm_token_type_ids"] = self.create_mm_token_type_ids(encoded["input_ids"])
        return encoded

    def _expanded(self, prompts: list[str], tags_of_images: list[list[Tag]]) -> tuple[list[str], list[list[dict]]]:
        """B prompts with placeholders and tag words written out, and where (for masks over characters)."""
        # Words must not run into the character that follows a placeholder.
        followers = [
            prompt[end : end + 1]
            for prompt, spans in zip(prompts, self._placeholders(prompts), strict=True)
            for _, end in spans
        ]
        if len(followers) != len(tags_of_images):
            raise ValueError(
                f"text holds {len(followers)} {self.image_token} placeholders for {len(tags_of_images)} images: write "
                f"one {self.image_token} where each image belongs."
            )
        replacements = []
        for index, (tags, follower) in enumerate(zip(tags_of_images, followers, strict=True)):
            words = self._words(tags, index)
            gap = " " if words and follower and not follower.isspace() else ""
            replacements.append(self.replace_image_token(image_idx=index) + words + gap)
        return self.get_text_with_replacements(list(prompts), replacements)

    def _placeholders(self, prompts: list[str]) -> list[list[tuple[int, int]]]:
        """Where the placeholders of each prompt stand; user text that is marked as not meant holds none."""
        most = sum(prompt.count(self.image_token) for prompt in prompts)
        _, found = self.get_text_with_replacements(list(prompts), [self.image_token] * most)
        return [[place["span"] for place in places] for places in found]

    def _words(self, tags: list[Tag], index: int) -> str:
        if not self.tag_words or not tags:
            return ""
        for tag in tags:
            for token in self.tokenizer.all_special_tokens:
                if token in tag.name:
                    raise ValueError(
                        f"tags[{index}] names {tag.name!r}, which holds the special token {token!r}: rename the tag."
                    )
        return " " + tag_prompt_words(tags)

    def _is_text(self, images: Any) -> bool:
        """Whether what stands in the place of images is a prompt: its words are spaced, or hold a placeholder."""
        first = images[0] if isinstance(images, list | tuple) and images else images
        if not isinstance(first, str) or len(first) > 4096 or first.startswith(("http://", "https://", "data:")):
            return False
        return (self.image_token in first or " " in first.strip()) and not os.path.exists(first)

    def _tag_inputs(
        self, tags_of_images: list[list[Tag]], return_tensors: str | None, length: int | None
    ) -> dict[str, Any]:
        length = self.tag_length if length is None else length
        if not tags_of_images or (length is None and not any(tags_of_images)):
            return {}
        if self.tag_tokenizer is None:
            if not self.tag_words and any(tags_of_images):
                logger.warning_once(
                    "tags are given, but this processor has neither a tag_tokenizer nor tag_words: ignored."
                )
            return {}
        with_scores = self.tag_score_encoding == "text"
        arrays = tokenize_tags(tags_of_images, self.tag_tokenizer, with_scores=with_scores, length=length)
        return {name: array if return_tensors else array.tolist() for name, array in arrays.items()}

    def _question_inputs(self, prompts: list[str], return_tensors: str | None) -> dict[str, Any]:
        """What is asked about each image, tokenized as tags are, for a router that compares the two."""
        if self.tag_tokenizer is None or self.question_length is None:
            return {}
        frame = self._turn_frame()
        not_words = [self.image_token, *self.tokenizer.all_special_tokens]
        questions = [
            question
            for prompt, spans in zip(prompts, self._placeholders(prompts), strict=True)
            for question in questions_of_images(prompt, [start for start, _ in spans], not_words, frame)
        ]
        arrays = tokenize_questions(questions, self.tag_tokenizer, self.question_length)
        return {name: array if return_tensors else array.tolist() for name, array in arrays.items()}

    def _turn_frame(self) -> TurnFrame:
        template = self.chat_template
        if self._known_frame is None or self._known_frame[0] != template:
            frame = TurnFrame() if template is None else TurnFrame.of(self._rendered)
            self._known_frame = (template, frame)
        return self._known_frame[1]

    def _rendered(self, chat: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self.apply_chat_template(chat, add_generation_prompt=add_generation_prompt, tokenize=False)

    @property
    def uncut_token_ids(self) -> frozenset[int]:
        """Ids that truncation never cuts: the placeholder and the special tokens (an unknown word is text)."""
        names = {name: token for name, token in self.tokenizer.special_tokens_map.items() if name != "unk_token"}
        tokens = [*names.values(), *self.tokenizer.extra_special_tokens, self.image_token]
        return frozenset(self.tokenizer.convert_tokens_to_ids(tokens))

    @property
    def model_input_names(self) -> list[str]:
        """Names of everything that the processor can return for the model."""
        text_names = [name for name in self.tokenizer.model_input_names if name != "token_type_ids"]
        tag_names: tuple[str, ...] = TAG_INPUTS if self.tag_tokenizer is not None else ()
        if self.tag_tokenizer is not None and self.question_length is not None:
            tag_names = (*TAG_INPUTS, *QUESTION_INPUTS)
        task_names = () if self.tasks is None else ("task_ids",)
        return list(dict.fromkeys([*text_names, *self.image_processor.model_input_names, *tag_names, *task_names]))

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """Placeholders for images of the given sizes; every image takes the same number."""
        if image_sizes is None:
            return MultiModalData()
        placeholders = [self.num_image_tokens + self.num_prompt_tokens] * len(image_sizes)
        return MultiModalData(num_image_tokens=placeholders, num_image_patches=[1] * len(image_sizes))

    def _multimodal_inputs_from_conversations(self, conversations, audio_loading_params, load_audio_from_video=False):
        """
        Collects the tags of `{"type": "image", "image": ..., "tags": [...]}` entries beside the images, and the task
        that a message names: `{"role": "user", "task": "grounding", "content": [...]}`.
        """
        images, videos, audios, others = super()._multimodal_inputs_from_conversations(
            conversations, audio_loading_params, load_audio_from_video
        )
        others = {**others, **tags_and_tasks(conversations, (self.tasks or ["none"])[0])}
        return images, videos, audios, others

    @classmethod
    def from_backbones(cls, vision, text, tag_encoder=None, config=None, **fields) -> "PoiseProcessor":
        r"""
        The processor of a model that `PoiseForConditionalGeneration.from_backbones` assembles from pretrained parts.

        `image_token` is added at the end of the vocabulary where the tokenizer lacks it. A tokenizer without a padding
        token pads with its end-of-text token (masks tell the two apart), which is logged. Prompts of a decoder-only
        model are padded on the left.

        Args:
            vision, text, tag_encoder (`str`): Hub ids or folders.
            config (`PoiseConfig`, *optional*): the model's configuration; gives numbers of tokens and the encoding.
            **fields: arguments of `PoiseProcessor`, which win over `config`. `chat_template` may also be a name in
                `CHAT_TEMPLATES`.

        Raises:
            ValueError: without `config` and `num_image_tokens`; or the image processor's images are not of the size
                that `config` expects.
        """
        parts = parts_of_backbones(vision, text, tag_encoder, config, fields)  # completes the fields
        return cls(*parts, **fields)


PoiseProcessor.register_for_auto_class()  # a saved processor carries its code

__all__ = ["PoiseProcessor"]
