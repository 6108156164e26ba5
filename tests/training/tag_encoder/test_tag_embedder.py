"""The anchor is what the soft prompt will make of the same tags: same encodings, same pooling."""

import pytest
import torch
from transformers import AutoTokenizer

from poise.modeling import PoiseConfig
from poise.modeling.soft_prompt import DynamicSoftPrompt
from poise.processing.tags import Tag
from poise.training.backbone_loading import load_tag_encoder, tiny_backbone_path
from poise.training.tag_encoder import model as tag_embedder_module
from poise.training.tag_encoder.data import TaggedCaptions, TripletCollator
from poise.training.tag_encoder.model import TagEmbedder

pytestmark = pytest.mark.numerics

IMAGES = [
    TaggedCaptions("a", [Tag("red square", 0.9), Tag("blue star", 0.2)], ["a red square", "one red square"]),
    TaggedCaptions("b", [Tag("green cross", 0.6)], ["a green cross"]),
]
ENCODINGS = ("text", "embedding", "attention_bias")


def embedder_and_batch(encoding, images=IMAGES):
    encoder, tokenizer = load_tag_encoder("tiny:tag_encoder")
    torch.manual_seed(0)
    embedder = TagEmbedder(encoder, encoding).eval()
    if embedder.score_embedding is not None:
        torch.nn.init.normal_(embedder.score_embedding.linear.weight, std=0.3)
    return embedder, TripletCollator(tokenizer, encoding == "text")(images)


def tags_of(batch):
    return {name: value for name, value in batch.items() if name.startswith("tag_")}


@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_the_anchor_is_what_the_soft_prompt_pools(encoding):
    embedder, batch = embedder_and_batch(encoding)
    config = PoiseConfig(
        tag_encoder_config=embedder.encoder.config, soft_prompt_pooling="mean", soft_prompt_length=1,
        tag_score_encoding=encoding, text_config={"model_type": "llama", "hidden_size": 64},
    )  # fmt: skip
    prompt = DynamicSoftPrompt(config).eval()
    torch.nn.init.eye_(prompt.projection.weight)
    torch.nn.init.zeros_(prompt.projection.bias)
    torch.nn.init.zeros_(prompt.no_tags)
    if prompt.score_embedding is not None:
        prompt.score_embedding.load_state_dict(embedder.score_embedding.state_dict())
    pooled = prompt(
        2, embedder.encoder, batch["tag_input_ids"], batch["tag_attention_mask"].bool(), batch["tag_scores"]
    )
    expected = torch.nn.functional.normalize(pooled[:, 0], dim=-1)
    torch.testing.assert_close(embedder.embed_tags(**tags_of(batch)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_scores_change_the_anchor(encoding):
    embedder, batch = embedder_and_batch(encoding)
    swapped = TaggedCaptions("a", [Tag("red square", 0.2), Tag("blue star", 0.9)], IMAGES[0].captions)
    _, other = embedder_and_batch(encoding, [swapped, IMAGES[1]])
    first, second = embedder.embed_tags(**tags_of(batch)), embedder.embed_tags(**tags_of(other))
    assert not torch.allclose(first[0], second[0], atol=1e-3)
    torch.testing.assert_close(first[1], second[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_new_score_embedding_changes_nothing():
    encoder, tokenizer = load_tag_encoder("tiny:tag_encoder")
    batch = tags_of(TripletCollator(tokenizer, False)(IMAGES))
    anchors = TagEmbedder(encoder, "embedding").eval().embed_tags(**batch)
    batch["tag_scores"] = torch.zeros_like(batch["tag_scores"])
    torch.testing.assert_close(anchors, TagEmbedder(encoder, "embedding").eval().embed_tags(**batch))


@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_rows_do_not_depend_on_their_batch(encoding):
    embedder, batch = embedder_and_batch(encoding)
    _, alone = embedder_and_batch(encoding, IMAGES[1:])
    together = embedder.embed_tags(**tags_of(batch))
    torch.testing.assert_close(embedder.embed_tags(**tags_of(alone)), together[1:], rtol=1e-4, atol=1e-5)


def test_several_captions_make_one_positive_by_their_mean():
    embedder, batch = embedder_and_batch("text")
    assert batch["caption_owner"].tolist() == [0, 0, 1]
    rows = embedder.embed_captions(batch["caption_input_ids"], batch["caption_attention_mask"])
    anchors = embedder.embed_tags(**tags_of(batch))
    mean = torch.nn.functional.normalize(rows[:2].mean(0), dim=0)
    distance = torch.nn.functional.pairwise_distance
    # The second image's only negatives are the first one's captions, and the other way round.
    torch.manual_seed(3)
    loss = embedder(**batch)["loss"]
    torch.manual_seed(3)
    chosen = torch.multinomial(torch.tensor([[0.0, 0, 1], [1, 1, 0]]), 1)[:, 0]
    expected = torch.stack(
        [
            (distance(anchors[:1], mean[None]) - distance(anchors[:1], rows[2:]) + 1).clamp_min(0),
            (distance(anchors[1:], rows[2:]) - distance(anchors[1:], rows[chosen[1:]]) + 1).clamp_min(0),
        ]
    ).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("negatives", ["random", "semi_hard"])
def test_a_caption_that_reads_as_an_own_one_is_no_negative(negatives, monkeypatch):
    encoder, tokenizer = load_tag_encoder("tiny:tag_encoder")
    embedder = TagEmbedder(encoder, "text", negatives=negatives).eval()
    seen = []

    def recorded(anchors, positives, captions, allowed, *rest):
        seen.append(allowed)
        return anchors.sum()

    monkeypatch.setattr(tag_embedder_module, "triplet_margin_loss", recorded)
    texts = [["a red square"], ["a red square", "a blue circle"], ["a green triangle"]]
    images = [TaggedCaptions(str(i), [Tag("red square", 0.5)], captions) for i, captions in enumerate(texts)]
    embedder(**TripletCollator(tokenizer, True)(images))
    embedder(**TripletCollator(tokenizer, True)([TaggedCaptions(i.name, i.tags, texts[0]) for i in images[:2]]))
    assert seen[0].tolist() == [[False, False, True, True], [False, False, False, True], [True, True, True, False]]
    assert seen[1].tolist() == [[False, True], [True, False]]  # where nothing else is there, another image's has to do


def test_the_tokenizer_stops_where_the_positions_end():
    _, tokenizer = load_tag_encoder("tiny:tag_encoder")
    assert tokenizer.model_max_length == 128
    many = TaggedCaptions("m", [Tag(f"red square {i}", 0.5) for i in range(100)], ["a " * 300])
    batch = TripletCollator(tokenizer, True)([many, IMAGES[0]])
    assert batch["tag_input_ids"].shape[1] <= 128 >= batch["caption_input_ids"].shape[1]


def test_a_slow_tokenizer_and_a_folder_that_is_none_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is no folder"):
        load_tag_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="package:minilm"):
        load_tag_encoder("package:bert")
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_path("tag_encoder"))
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="no fast tokenizer"):
        load_tag_encoder("tiny:tag_encoder")
