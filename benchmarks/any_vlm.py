"""What Poise can ask each family of vision-language models: a table of every probe on tiny models of random weights.

    python benchmarks/any_vlm.py

Each probe runs and is checked: `yes` means that its figures agree with the model's own (see the columns of
docs/any_vlm.md), `no` that the family says in one line why it cannot be asked, `WRONG` that figures disagree.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel
from transformers.utils import logging

from poise.evaluation.model_errors import UnsupportedProbe
from poise.evaluation.probing.answers import answer_log_probabilities, attention_on_prompt, greedy_answers
from poise.evaluation.probing.attention_blocking import block_attention
from poise.evaluation.probing.families import NO_IMAGE_TOKENS
from poise.evaluation.probing.image_features import Change
from poise.evaluation.probing.parts import model_parts
from poise.evaluation.probing.prompt_batch import PromptBatch
from poise.evaluation.probing.residual_stream import read_off, residual_stream
from poise.evaluation.probing.token_grids import is_query_module
from poise.modeling.modeling_vlm_router import OWN_GENERATE, RoutedVlm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "any_vlm"))
from more_families import MORE  # noqa: E402
from recent_families import RECENT  # noqa: E402
from shrunk_families import SHRUNK, build  # noqa: E402
from tiny_families import FAMILIES  # noqa: E402

ANSWER = [[11, 12, 13]]
TAGS = {
    "tag_input_ids": torch.tensor([[3, 4, 5]]),
    "tag_attention_mask": torch.tensor([[1, 1, 0]]),
    "tag_scores": torch.tensor([[0.9, 0.5, 0.0]]),
}


def answers(prompts: PromptBatch) -> bool:
    """Cached generation gives the tokens of whole forward passes."""
    return greedy_answers(prompts, max_new_tokens=3) == greedy_answers(prompts, max_new_tokens=3, use_cache=False)


def ablation(prompts: PromptBatch) -> bool:
    """An image token replaced by itself changes nothing, by another one something."""
    rows, more = prompts.image_rows(prompts.image), decoder_of(prompts)
    own = prompts.parts.model(**prompts.inputs, **more, use_cache=False).logits
    same = prompts.logits([Change(prompts.image, rows)], **more)
    # The projector of a Gemma 3 starts at zero: the sum makes every row another one.
    return torch.equal(own, same) and not torch.equal(own, prompts.logits([Change(prompts.image, 1 - rows)], **more))


def lens(prompts: PromptBatch) -> bool:
    """At the last layer it reads the model's own logits."""
    prompts.parts.check_image_tokens("logit lens of image tokens")
    stream, places = residual_stream(prompts), torch.arange(prompts.input_ids.shape[1])
    read = torch.cat(list(read_off(prompts, stream, len(stream.states) - 1, places)))
    return prompts.parts.is_encoder_decoder or torch.equal(read, prompts.logits()[0])


def attention(prompts: PromptBatch) -> bool:
    """What a position pays to the prompt is between nothing and all."""
    total = attention_on_prompt(prompts, ANSWER, each=True).nansum(-1)  # (A, L, B)
    return bool((total > -1e-6).all()) and bool((total < 1 + 1e-4).all()) and bool((total > 0).any())


def knockout(prompts: PromptBatch) -> bool:
    """A blocked position receives exactly nothing, and the answer's probability changes."""
    mask = torch.zeros_like(prompts.input_ids, dtype=torch.bool)
    queries, keys = mask.clone(), mask.clone()
    queries[0, -1], keys[0, 1] = True, True
    before = answer_log_probabilities(prompts, ANSWER)
    with block_attention(prompts.parts, queries, keys, answer_queries=True):
        after = answer_log_probabilities(prompts, ANSWER)
        received = attention_on_prompt(prompts, ANSWER)[..., 1].nansum()
    return float(received) == 0.0 and not torch.equal(before, after)


def grid(prompts: PromptBatch) -> bool:
    """Whether its image tokens are patches, rather than queries about the whole image."""
    prompts.parts.check_image_tokens("patch grid")
    for module in prompts.parts.model.modules():
        if is_query_module(type(module).__name__) and "image_grid_thw" not in prompts.inputs:
            raise prompts.parts.cannot("patch grid", f"{type(module).__name__} makes its image tokens")
    return True


def router(prompts: PromptBatch) -> bool:
    """A reliability router changes nothing at first; then tags do, in answers too, and what is new alone learns."""
    words = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    images = {name: value for name, value in prompts.inputs.items() if name not in words}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = BertModel(BertConfig(**sizes, vocab_size=50))
    try:
        model = RoutedVlm.from_vlm(prompts.parts.vlm, encoder, example=images)
    except ValueError as error:
        raise UnsupportedProbe(str(error)) from error
    inputs = {**prompts.inputs, **TAGS, **decoder_of(prompts)}
    own = prompts.parts.model(**prompts.inputs, **decoder_of(prompts)).logits
    same = torch.equal(model(**inputs).logits, own) and model.router_weights.shape == (1, 2)
    torch.nn.init.normal_(model.route.reader.out.weight)
    moved = not torch.allclose(model(**inputs).logits, own, atol=1e-4)
    with torch.enable_grad():
        model.train()(**inputs).logits.float().square().mean().backward()
    learns = all((some.grad is not None) == model.is_new(name) for name, some in model.named_parameters())
    return same and moved and learns and answers(PromptBatch(model_parts(model.eval()), {**prompts.inputs, **TAGS}))


# The router is the last: it freezes the model.
PROBES = {"answers": answers, "ablation": ablation, "patches": grid, "lens": lens, "attention": attention,
          "knockout": knockout, "router": router}  # fmt: skip


def decoder_of(prompts: PromptBatch) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": torch.tensor([[2, 3]])} if prompts.parts.is_encoder_decoder else {}


@torch.no_grad()
def row_of(name: str) -> list[str]:
    torch.manual_seed(0)
    made = {**FAMILIES, **MORE, **RECENT}
    model, inputs = made[name]() if name in made else build(name)
    inputs.pop("decoder_input_ids", None)
    prompts = PromptBatch(model_parts(model.eval()), inputs)
    cells, why = [], ""
    for probe in PROBES.values():
        try:
            cells.append("yes" if probe(prompts) else "WRONG")
        except UnsupportedProbe as error:
            cells.append("no")
            why = str(error)
    left = [number for number, module in enumerate(prompts.parts.attentions) if module is None]
    notes = [NO_IMAGE_TOKENS.get(prompts.parts.family, "")]
    if cells[list(PROBES).index("patches")] == "no" and prompts.parts.has_image_tokens:
        notes.append("its image tokens are queries about the whole image")
    if prompts.parts.is_encoder_decoder:
        notes.append("the encoder is read; attention is the decoder's to it")
    if left:
        notes.append(f"{len(left)} of {len(prompts.parts.attentions)} layers without self-attention weights")
    if cells[-1] == "no" and prompts.parts.has_image_tokens:
        no_tower = "shows no hidden states" in why
        notes.append("no vision tower, so no reliability router" if no_tower else "its image enters in several layers")
    if prompts.parts.family in OWN_GENERATE and cells[-1] == "yes":
        notes.append("its `generate` goes around the router")
    return [name, *cells, "; ".join(note for note in notes if note)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", metavar="NAME", help="default: all")
    names = parser.parse_args().families or [*FAMILIES, *MORE, *SHRUNK, *RECENT]
    logging.set_verbosity_error()
    print("| family | " + " | ".join(PROBES) + " | |")
    print("|---|" + "---|" * len(PROBES) + "---|")
    rows = []
    for name in names:
        rows.append(row_of(name))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    return int(any("WRONG" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
