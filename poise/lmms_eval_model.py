"""A Poise model as lmms-eval asks it: chat messages with images in, text out, in batches, on every process."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from poise.evaluation.decoding import without_prompts

# lmms-eval's own settings -> what `generate` calls them; the rest of a task's settings is not ours to read.
SETTINGS = ("max_new_tokens", "num_beams", "temperature", "top_p", "do_sample")
MAX_NEW_TOKENS = 128


class PoiseForLmmsEval(lmms):
    """
    Args:
        pretrained (`str`): Hub id or folder of a Poise model (any image-text-to-text model will do).
        tagger (`str`, *optional*): folder of a dual encoder that `poise align` trained, which gives every image its
            tags; without one there are none.
        device, dtype, batch_size: as `--device` and `--batch_size` of lmms-eval; `dtype` as transformers takes it.
        trust_remote_code (`bool`, *optional*, defaults to `False`): needed only where the repository holds code that
            this version of Poise does not know.

    Raises:
        ValueError: an argument that is not known, or a batch size below 1.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        tagger: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        trust_remote_code: bool = False,
        **unknown: Any,
    ):
        super().__init__()
        unknown.pop("max_batch_size", None)  # lmms-eval passes it to every model
        if unknown:
            known = "pretrained, tagger, device, dtype, batch_size, trust_remote_code"
            raise ValueError(f"model_args has {sorted(unknown)[0]!r}, which is not known: use {known}")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1 or device is None:
            self.device = self.accelerator.device
        else:
            self.device = torch.device(device)
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        code = {"trust_remote_code": bool(trust_remote_code)}
        self.processor = AutoProcessor.from_pretrained(pretrained, **code)
        model = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype, **code)
        self.model = model.to(self.device).eval()
        self.tagger = None
        if tagger is not None:
            from poise.processing.records.tagged_records import load_tagger

            self.tagger = load_tagger(tagger)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """
        Answers in the order of the requests; those with the same settings are asked in batches.

        Raises:
            ValueError: a request holds video or sound.
        """
        results: list[GenerationResult | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[2].items())), []).append(place)
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="answering")
        for places in groups.values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                arguments = [requests[place].args for place in batch]
                answers = self._answer([self._messages(*one) for one in arguments], arguments[0][2])
                for place, answer in zip(batch, answers, strict=True):
                    results[place] = answer
                    self.cache_hook.add_partial("generate_until", requests[place].args[:3:2], answer.text)
                bar.update(len(batch))
        bar.close()
        return [result for result in results if result is not None]

    def _messages(self, context, doc_to_messages, settings, doc_id, task, split) -> list[dict[str, Any]]:
        """A task's document as chat messages of transformers, with the tagger's tags beside every image."""
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        _, videos, sounds = chat.extract_media()
        if videos or sounds:
            raise ValueError(f"task {task!r} shows video or sound: Poise reads images and text")
        messages = chat.to_hf_messages()
        for message in messages:
            for part in message["content"]:
                if part["type"] == "image" and self.tagger is not None:
                    part["tags"] = self.tagger.tag_records([{"id": str(doc_id), "image": part["image"]}])[0]
        return messages

    @torch.no_grad()
    def _answer(self, conversations: list[list[dict]], settings: Mapping[str, Any]) -> list[GenerationResult]:
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.device)
        chosen = {name: settings[name] for name in SETTINGS if settings.get(name) is not None}
        chosen.setdefault("max_new_tokens", MAX_NEW_TOKENS)
        chosen.setdefault("do_sample", float(chosen.get("temperature", 0)) > 0)
        if not chosen["do_sample"]:
            chosen.pop("temperature", None)
            chosen.pop("top_p", None)
        tokens = self.model.generate(**inputs, **chosen)  # (B, T)
        tokens = without_prompts(self.model, inputs["input_ids"], tokens)  # (B, A)
        padding = self.processor.tokenizer.pad_token_id
        counts = (tokens != padding).sum(-1).tolist()
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [
            GenerationResult(cut_at(text, settings.get("until")).strip(), TokenCounts(output_tokens=count))
            for text, count in zip(texts, counts, strict=True)
        ]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("Poise answers tasks that generate; lmms-eval offers chat models no other kind")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("Poise answers in one round: choose a task with output_type generate_until")


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """`text` up to the first of the strings that a task stops at."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.partition(stop)[0]
    return text
