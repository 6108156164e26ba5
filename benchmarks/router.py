"""What the router costs, as ratios in one run: `python benchmarks/router.py`.

1. The channel router, forward and backward, against a straightforward implementation that decomposes one sample after
   the other; both outputs are compared.
2. The share of router and soft prompt in a full forward pass at SigLIP-B/16 + 135M-decoder shapes, random weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import BertConfig, LlamaConfig, SiglipVisionConfig

from poise.modeling import PoiseConfig, PoiseForConditionalGeneration
from poise.modeling.channel_router import SCALE_LIMITS, ChannelRouter
from poise.modeling.streams import Streams


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def one_stream(receiver: torch.Tensor, donor: torch.Tensor, alpha: torch.Tensor, rank: int, fraction: float):
    """The channel router's formula for one sample and one direction, with an SVD: (T, D), (T', D) → (T, D)."""
    centred = receiver - receiver.mean(0)  # (T, D)
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)  # (r,), (r, D)
    scores = (values[:rank, None].square() * vectors[:rank].square()).sum(0)  # (D,)
    low = scores.topk(max(1, round(fraction * len(scores))), largest=False).indices  # (k,)
    mean = donor.mean(0)  # (D,)
    ratio = receiver[:, low].square().mean().sqrt() / mean[low].square().mean().sqrt()
    scale = ratio.clamp(*SCALE_LIMITS).detach()
    routed = receiver.clone()
    routed[:, low] = (1 - alpha[low]) * receiver[:, low] + alpha[low] * scale * mean[low]
    return routed


def one_by_one(image, text, router):
    """All samples through `one_stream`, both directions."""
    settings = {"rank": router.rank, "fraction": router.fraction}
    image_blend, text_blend = router.image_blend.sigmoid(), router.text_blend.sigmoid()
    images = [one_stream(i, t, image_blend, **settings) for i, t in zip(image, text, strict=True)]
    texts = [one_stream(t, i, text_blend, **settings) for i, t in zip(image, text, strict=True)]
    return torch.stack(images), torch.stack(texts)


def channel_router(batch: int, repeats: int) -> None:
    """Print the ratio of the loop's time to ours, and the greatest difference of their outputs."""
    torch.manual_seed(0)
    config = PoiseConfig(text_config={"model_type": "llama", "hidden_size": 576}, router_type="channel")
    router = ChannelRouter(config)
    with torch.no_grad():
        router.image_blend.zero_()
        router.text_blend.zero_()
    # A decaying spectrum, as features have; each sample its own.
    decay = torch.arange(1, 577).float().rsqrt()  # (D,)
    image = (torch.randn(batch, 196, 576) * decay @ torch.randn(576, 576)).requires_grad_()  # (B, P, D)
    text = torch.randn(batch, 64, 576, requires_grad=True)  # (B, K, D)
    streams = Streams(image, text)

    def ours():
        routed, _ = router(streams)
        (routed.image.sum() + routed.text.sum()).backward()
        return routed.image.detach(), routed.text.detach()

    def loop():
        images, texts = one_by_one(image, text, router)
        (images.sum() + texts.sum()).backward()
        return images.detach(), texts.detach()

    difference = max(float((a - b).abs().max()) for a, b in zip(ours(), loop(), strict=True))
    slow, fast = seconds(loop, repeats), seconds(ours, repeats)
    print(f"channel router, B={batch}, 196 + 64 tokens, D=576, forward + backward")
    print(f"  one by one {slow * 1e3:8.1f} ms\n  batched    {fast * 1e3:8.1f} ms")
    print(f"  ratio      {slow / fast:8.1f} x    greatest difference {difference:.1e}")


def share_of_forward(batch: int, repeats: int) -> None:
    """Print what router and soft prompt add to a forward pass, for every router."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(image_size=224, patch_size=16, vision_use_head=False)
    text = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    tags = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
    shared = {"vision_config": vision.to_dict(), "text_config": text.to_dict(), "tag_encoder_config": tags.to_dict()}
    print(f"share of a forward pass, SigLIP-B/16 + 135M decoder, B={batch}, 196 image + 8 prompt + 64 text tokens")
    for router in ("none", "gate", "channel", "reliability"):
        config = PoiseConfig(**shared, image_token_id=5, router_type=router, tag_separator_ids=[0, 1, 2])
        model = PoiseForConditionalGeneration(config).eval()
        inputs = forward_inputs(model, batch)
        parts = Stopwatch({"tag encoder": model.model.tag_encoder, "soft prompt": model.model.soft_prompt,
                           "router": model.model.router,
                           "evidence": getattr(model.model.router, "word_evidence", None)})  # fmt: skip
        with torch.no_grad():
            total = seconds(lambda m=model, i=inputs: m(**i, logits_to_keep=1), repeats)
        prompt = parts.median("soft prompt") - parts.median("tag encoder")
        routing = parts.median("router") + parts.median("evidence")
        own = prompt + routing
        print(
            f"  {router:<12} forward {total * 1e3:7.0f} ms   soft prompt {prompt / total:6.2%}   "
            f"router {routing / total:6.2%}   together {own / total:6.2%}   "
            f"(tag encoder, a backbone: {parts.median('tag encoder') / total:.1%})"
        )


class Stopwatch:
    """Wall time of modules' forward calls."""

    def __init__(self, modules: dict[str, torch.nn.Module | None]):
        self.times: dict[str, list[float]] = {name: [] for name in modules}
        self.started: dict[str, float] = {}
        for name, module in modules.items():
            if module is not None:
                module.register_forward_pre_hook(lambda *_, name=name: self.started.update({name: time.perf_counter()}))
                module.register_forward_hook(
                    lambda *_, name=name: self.times[name].append(time.perf_counter() - self.started[name])
                )

    def median(self, name: str) -> float:
        return statistics.median(self.times[name][1:]) if self.times[name] else 0.0


def forward_inputs(model: PoiseForConditionalGeneration, batch: int) -> dict[str, torch.Tensor]:
    """A batch of one picture with 12 tag tokens and 64 text tokens per sample."""
    placeholders = model.config.num_image_tokens + model.config.num_prompt_tokens
    row = torch.tensor([5] * placeholders + list(range(10, 74)))  # (T,)
    return {
        "input_ids": row.expand(batch, -1),  # (B, T)
        "pixel_values": torch.randn(batch, 3, 224, 224),
        "tag_input_ids": torch.randint(0, 1000, (batch, 12)),  # (B, L)
        "tag_attention_mask": torch.ones(batch, 12, dtype=torch.long),
        "tag_scores": torch.rand(batch, 12),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forward-batch", type=int, default=4)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    channel_router(args.batch, args.repeats)
    share_of_forward(args.forward_batch, args.repeats)


if __name__ == "__main__":
    main()
