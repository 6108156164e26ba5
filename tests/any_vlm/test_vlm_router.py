"""A router and a soft prompt on pretrained models of every family: nothing changes at first, what is new learns."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_families import FAMILIES, IMG
from tiny_folders import BACKBONES, llava
from transformers import AutoModel, AutoProcessor, AutoTokenizer, BertConfig, BertModel

from poise.command_line import main
from poise.evaluation.chat_collator import router_inputs
from poise.modeling.configuration_vlm_router import VlmRouterConfig
from poise.modeling.image_reliability import image_inputs
from poise.modeling.modeling_vlm_router import RoutedVlm, image_owner
from poise.processing.degradations.image_degradations import IMAGE_DEGRADATIONS
from poise.processing.scenes.scenes import Scenes
from poise.processing.tag_tokens import tokenize_tags
from poise.processing.tags import check_tags

ELSEWHERE = ("kosmos2", "mllama")  # their images do not enter by get_image_features
OWN_GENERATE = ("blip2_opt", "blip2_t5", "instructblip")
TAGS = {
    "tag_input_ids": torch.tensor([[3, 4, 5]]),
    "tag_attention_mask": torch.tensor([[1, 1, 0]]),
    "tag_scores": torch.tensor([[0.9, 0.5, 0.0]]),
}
GREEDY = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [IMG]}


def tag_encoder():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(**sizes, vocab_size=50)).eval()


def images_of(inputs):
    text = ("input_ids", "token_type_ids", "mm_token_type_ids", "decoder_input_ids")
    return {name: value for name, value in inputs.items() if name not in text}


def routed(family, **fields):
    vlm, inputs = FAMILIES[family]()
    return RoutedVlm.from_vlm(vlm, tag_encoder(), example=images_of(inputs), **fields), inputs


def opened(model):
    """With an output of the reader that is not zero any more, as after training."""
    torch.nn.init.normal_(model.route.reader.out.weight)
    return model


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ELSEWHERE])
def test_every_family(family):
    model, inputs = routed(family)
    with torch.no_grad():
        own = model.vlm(**inputs).logits
        assert torch.equal(model(**inputs).logits, own) and torch.equal(model(**inputs, **TAGS).logits, own)
        assert model.router_weights.shape == (1, 2)
        opened(model)
        with_tags = model(**inputs, **TAGS).logits
        other = model(**inputs, **{**TAGS, "tag_input_ids": TAGS["tag_input_ids"] + 10}).logits
        assert not torch.allclose(with_tags, own, atol=1e-4) and not torch.allclose(with_tags, other, atol=1e-5)
        assert torch.equal(model.vlm(**inputs).logits, own)  # the model itself is what it was

    model.train()
    model(**inputs, **TAGS).logits.float().square().mean().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("route.")}
    model.eval()

    if family in OWN_GENERATE:
        with pytest.raises(ValueError, match="around get_image_features"):
            model.generate(**inputs, **TAGS, **GREEDY)
        return
    cached = model.generate(**inputs, **TAGS, **GREEDY, output_scores=True, return_dict_in_generate=True)
    uncached = model.generate(
        **inputs, **TAGS, **GREEDY, output_scores=True, return_dict_in_generate=True, use_cache=False
    )
    scores = [torch.stack(found.scores).nan_to_num(neginf=0.0) for found in (cached, uncached)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)
    # What was decoded first is what `forward` says with tags.
    expected = with_tags[:, -1].clone()
    expected[:, IMG] = 0.0
    decoder_only = "decoder_input_ids" not in inputs
    if decoder_only:
        found = scores[0][0]
        kept = found != 0
        torch.testing.assert_close(found[kept], expected[kept], rtol=1e-4, atol=1e-4)
    assert model.generate(**inputs, **TAGS, **GREEDY, num_beams=2).shape == cached.sequences.shape


@pytest.mark.parametrize("family", ELSEWHERE)
def test_families_without_a_place_for_it_say_so(family):
    with pytest.raises(ValueError, match="fills no placeholders"):
        routed(family)


@pytest.mark.parametrize("router", ["gate", "channel", "none"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_every_router_leaves_the_logits_at_first_and_learns(family, router):
    model, inputs = routed(family, router_type=router)
    with torch.no_grad():
        own = model.vlm(**inputs).logits
        assert torch.equal(model(**inputs, **TAGS).logits, own)
    opened(model).train()
    model(**inputs, **TAGS).logits.float().square().mean().backward()
    silent = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert silent == set()
    if router == "channel":
        assert model.route.opening.grad != 0


def test_two_images_of_one_batch_are_routed_as_each_alone():
    model, inputs = routed("llava")
    opened(model)
    two = {
        name: torch.cat([value, value * 0.5 if value.is_floating_point() else value]) for name, value in inputs.items()
    }
    tags = {name: torch.cat([value, value.flip(0)]) for name, value in TAGS.items()}
    tags["tag_input_ids"][1] += 7
    with torch.no_grad():
        together = model(**two, **tags).logits
        for i in range(2):
            alone = {name: value[i : i + 1] for name, value in {**two, **tags}.items()}
            torch.testing.assert_close(model(**alone).logits[0], together[i], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_flat_patches_of_two_sizes_are_told_apart():
    """Qwen-VL lays the patches of all images in one row: each image is judged by its own."""
    model, inputs = routed("qwen2_vl")
    small, large = torch.randn(16, inputs["pixel_values"].shape[1]), torch.randn(32, inputs["pixel_values"].shape[1])
    grids = torch.tensor([[1, 4, 4], [1, 4, 8]])
    seen = []
    model.route.register_forward_hook(lambda module, args, kwargs, out: seen.append(args[3]), with_kwargs=True)
    with torch.no_grad():
        model.get_image_features(torch.cat([small, large]), image_grid_thw=grids)
        for pixels, grid in ((small, grids[:1]), (large, grids[1:])):
            model.get_image_features(pixels, grid)  # by position, as some models call it
    assert [states[0].shape for states in seen[:2]] == [(1, 16, 32), (1, 32, 32)]
    for together, alone in zip(seen[:2], seen[2:], strict=True):  # states at every depth, of its own image alone
        for states, own in zip(together, alone, strict=True):
            torch.testing.assert_close(states, own, rtol=1e-4, atol=1e-5)


def test_images_in_one_row_of_a_tower_are_told_apart():
    """Pixtral's tower reads all images of a batch as one sequence."""
    model, inputs = routed("mistral3")
    opened(model)
    pixels = torch.cat([inputs["pixel_values"], torch.randn(1, 3, 56, 56)])
    sizes, tags = inputs["image_sizes"].expand(2, -1), {name: value.expand(2, -1) for name, value in TAGS.items()}
    with torch.no_grad():
        together = model.get_image_features(pixels, image_sizes=sizes, **tags).pooler_output
        profiles = model.router_weights
        for i in range(2):
            alone = model.get_image_features(pixels[i : i + 1], image_sizes=sizes[:1], **TAGS).pooler_output
            torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-5)
    assert profiles.shape == (2, 2)


def test_a_tower_that_lists_no_states_is_read_layer_by_layer(monkeypatch):
    vlm, inputs = FAMILIES["llava"]()
    own = type(vlm.model).get_image_features

    @functools.wraps(own)
    def bare(self, *args, **kwargs):
        features = own(self, *args, **kwargs)
        return type(features)(**{name: value for name, value in features.items() if name != "hidden_states"})

    monkeypatch.setattr(type(vlm.model), "get_image_features", bare)
    model = RoutedVlm.from_vlm(vlm, tag_encoder(), example=images_of(inputs))
    with torch.no_grad():
        model(**inputs, **TAGS)
    assert model.config.tower_layers + 1 == 2 and model.router_weights.shape == (1, 2)


def test_a_model_that_does_not_ask_for_image_features_is_refused(monkeypatch):
    """Otherwise nothing would be routed, and nobody told."""
    model, inputs = routed("llava")
    own = model.vlm.model.get_image_features
    monkeypatch.setattr(type(model.vlm.model), "forward", around(type(model.vlm.model).forward, own))
    with torch.no_grad(), pytest.raises(ValueError, match="pixel_values without asking get_image_features"):
        model(**inputs, **TAGS)
    model(input_ids=inputs["input_ids"][:, :2])  # no image, nothing to route


def around(forward, own):
    """A forward pass that asks the method of its class, past what stands in its place."""

    def changed(self, *args, pixel_values=None, **kwargs):
        if pixel_values is None:
            return forward(self, *args, **kwargs)
        kwargs["mm_encoder_outputs"] = {"image": own(pixel_values, return_dict=True)}
        return forward(self, *args, **kwargs)

    return changed


def test_frozen_towers_stay_functions_in_training():
    model, _ = routed("llava")
    model.train()
    assert not model.vlm.get_encoder("image").training and not model.tag_encoder.training
    assert model.vlm.get_decoder().training and model.route.training
    model.tag_encoder.requires_grad_(True)
    assert model.train().tag_encoder.training


def test_deeper_features_fade_with_the_tokens():
    model, inputs = routed("qwen3_vl")
    model.route.router.judge = lambda *evidence: (torch.tensor([[0.25, 1.0]]), None)
    model.route.trained.fill_(True)
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        own = model.vlm.model.get_image_features(**images, return_dict=True).deepstack_features
        faded = model.get_image_features(**images, **TAGS).deepstack_features
    for layer, given in zip(faded, own, strict=True):
        torch.testing.assert_close(layer[0], 0.25 * given[0])


def test_the_question_reaches_the_router_image_by_image():
    """In `forward`, in `generate` and in `get_image_features`; every tile of an image has the question of its image."""
    model, inputs = routed("llava")
    two = {name: torch.cat([value, value]) for name, value in inputs.items()}
    tags = {name: torch.cat([value, value]) for name, value in TAGS.items()}
    question = {
        "question_input_ids": torch.tensor([[7, 8, 9], [10, 0, 0]]),
        "question_attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    judge, seen = model.route.router.judge, []

    def watched(*evidence):
        seen.append(evidence[3])
        return judge(*evidence)

    model.route.router.judge = watched
    embedded = model.tag_encoder.get_input_embeddings()(question["question_input_ids"])  # (2, 3, R)
    images = images_of(two)
    with torch.no_grad():
        model(**two, **tags, **question)
        model.generate(**two, **tags, **question, **GREEDY)
        model.get_image_features(pixel_values=images["pixel_values"], **tags, **question)
        model.get_image_features(pixel_values=torch.cat([images["pixel_values"]] * 2), **tags, **question)
        model(**two, **tags)
    assert len(seen) == 10  # the verdict, and what is done about it
    assert all(torch.equal(first[1], again[1]) for first, again in zip(seen[:8:2], seen[1:8:2], strict=True))
    seen = seen[::2]
    for words, mask in seen[:3]:
        torch.testing.assert_close(words, embedded)
        assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert seen[3][1].sum(-1).tolist() == [3, 3, 1, 1] and seen[4] is None


def test_separators_of_tags_are_those_of_the_tag_encoder(folder):
    encoder = str(BACKBONES / "tag_encoder")
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = RoutedVlm.from_vlm(folder, encoder)
    tags = tokenize_tags([check_tags([("red square", 0.9), ("star", 0.5)])], tokenizer, with_scores=False)
    ids, mask = torch.from_numpy(tags["tag_input_ids"]), torch.from_numpy(tags["tag_attention_mask"]).bool()
    is_word, tag_of_token = model.route.router.word_evidence.tags_of_tokens(ids, mask)
    assert tokenizer.convert_ids_to_tokens(ids[is_word]) == ["red", "square", "star"]
    assert len(set(tag_of_token[is_word].tolist())) == 2


def test_a_batch_without_any_tag_is_one_without_tags():
    model, inputs = routed("llava")
    opened(model)
    with torch.no_grad():
        empty = {name: value[:, :0] for name, value in TAGS.items()}
        assert torch.equal(model(**inputs, **empty).logits, model(**inputs).logits)


def test_tags_for_other_images_and_half_given_tags_are_refused():
    model, inputs = routed("llava")
    three = {name: value.expand(3, -1) for name, value in TAGS.items()}
    with pytest.raises(ValueError, match="of 3 images are given for 1"):
        model(**inputs, **three)
    with pytest.raises(ValueError, match="tag_scores is None"):
        model(**inputs, tag_input_ids=TAGS["tag_input_ids"], tag_attention_mask=TAGS["tag_attention_mask"])
    with pytest.raises(ValueError, match="question_attention_mask is None"):
        model(**inputs, question_input_ids=TAGS["tag_input_ids"])
    with pytest.raises(ValueError, match="set them"):
        model.save_pretrained("nowhere")
    with pytest.raises(ValueError, match="router_type"):
        VlmRouterConfig(router_type="gat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return llava(tmp_path_factory.mktemp("vlm"))


def asked(processor, record):
    text = f"user: <image>\n{record['question']}\nassistant:"
    return processor(images=record["image"], text=text, return_tensors="pt")


def test_it_is_saved_beside_the_model_and_loads_without_poise(folder, tmp_path):
    model = RoutedVlm.from_vlm(folder, str(BACKBONES / "tag_encoder"), router_type="gate")
    assert model.config.vlm == folder and model.config.vlm_type == "llava"
    opened(model).save_pretrained(tmp_path / "router")
    size = sum(file.stat().st_size for file in (tmp_path / "router").glob("*.safetensors"))
    assert size == pytest.approx(4 * sum(p.numel() for p in model.route.parameters()), rel=0.2)
    record = Scenes("test", size=1, tasks=("vqa",))[0]
    inputs = asked(AutoProcessor.from_pretrained(folder), record)
    with torch.no_grad():
        expected = model(**inputs, **TAGS).logits
        again = RoutedVlm.from_pretrained(tmp_path / "router")
        torch.testing.assert_close(again(**inputs, **TAGS).logits, expected, rtol=1e-5, atol=1e-6)
    torch.save({"inputs": dict(inputs), "tags": TAGS, "logits": expected}, tmp_path / "expected.pt")
    code = f"""
import sys, torch
class NoPoise:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "poise": raise ImportError(name)
sys.meta_path.insert(0, NoPoise())
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained({str(tmp_path / "router")!r}, trust_remote_code=True)
given = torch.load({str(tmp_path / "expected.pt")!r})
with torch.no_grad():
    torch.testing.assert_close(model(**given["inputs"], **given["tags"]).logits, given["logits"], rtol=1e-5, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_statistics_without_training_tell_damage_and_are_saved(folder, tmp_path):
    model = RoutedVlm.from_vlm(folder, str(BACKBONES / "tag_encoder"))
    processor = AutoProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(BACKBONES / "tag_encoder")

    def inputs_of(records, degradation=None):
        rng = np.random.default_rng(0)
        images = [r["image"] for r in records]
        if degradation is not None:
            images = [IMAGE_DEGRADATIONS[degradation](image, 5, rng, None) for image in images]
        pixels = torch.cat([image_inputs(processor, image)["pixel_values"] for image in images])
        return {"pixel_values": pixels, **router_inputs(records, tokenizer)}

    drawn = Scenes("train", size=480, tasks=("vqa",))
    before = {name: value.clone() for name, value in model.route.named_parameters()}
    for start in range(0, 480, 32):
        model.observe(**inputs_of(drawn.__getitems__(list(range(start, start + 32)))))
    model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.route.named_parameters())
    records = Scenes("test", size=24, tasks=("vqa",)).__getitems__(list(range(24)))
    records = [record for record in records if record["tags"]]

    def weights(some):
        with torch.no_grad():
            some.get_image_features(**inputs_of(records))
            sound = some.router_weights[:, 0]
            some.get_image_features(**inputs_of(records, "noise"))
        return sound, some.router_weights[:, 0]

    sound, noisy = weights(model)
    assert sound.min() > 0.9 and noisy.max() < 0.5
    # An image shows what is asked about it rather than what is asked about the next one.
    verdicts, evidence = [], model.route.router.word_evidence
    evidence.register_forward_hook(lambda module, args, out: verdicts.append(out[3]))
    assert bool(evidence.question_shown.ready)
    inputs = inputs_of(records)
    with torch.no_grad():
        model.get_image_features(**inputs)
        model.get_image_features(**{k: v.roll(1, 0) if "question" in k else v for k, v in inputs.items()})
    assert verdicts[0].mean() > verdicts[-1].mean() + 0.5
    # What was never trained says whom not to trust, and changes nothing.
    noise = inputs_of(records, "noise")
    with torch.no_grad():
        own = image_owner(model.vlm).get_image_features(noise["pixel_values"], return_dict=True).pooler_output
        routed = model.get_image_features(**noise).pooler_output
        torch.testing.assert_close(torch.stack(list(routed)), torch.stack(list(own)), rtol=1e-5, atol=1e-6)
        model.route.trained.fill_(True)
        routed = model.get_image_features(**noise).pooler_output
        assert (torch.stack(list(routed)) - torch.stack(list(own))).abs().amax(dim=(1, 2)).min() > 1e-3
        # What is worth more hurt than left out is told, and stays.
        model.route.thresholds.fill_(1.0)
        routed = model.get_image_features(**noise).pooler_output
        torch.testing.assert_close(torch.stack(list(routed)), torch.stack(list(own)), rtol=1e-5, atol=1e-6)
        assert model.router_weights[:, 0].max() < 0.5
        model.route.thresholds.fill_(0.5)
        model.route.trained.fill_(False)
    model.save_pretrained(tmp_path / "router")
    again = weights(RoutedVlm.from_pretrained(tmp_path / "router"))
    torch.testing.assert_close(again, (sound, noisy), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_learns_from_tags_what_the_model_cannot_see(folder):
    """Two tags, two answers, one blank image: the frozen model alone cannot tell, the router's prompt can."""
    torch.manual_seed(0)
    model = RoutedVlm.from_vlm(folder, AutoModel.from_pretrained(BACKBONES / "tag_encoder"), router_type="gate").train()
    processor = AutoProcessor.from_pretrained(folder)
    record = Scenes("test", size=1, tasks=("vqa",))[0]
    one = asked(processor, record)
    inputs = {name: torch.cat([value, value]) for name, value in one.items()}
    tags = {"tag_input_ids": torch.tensor([[5, 6], [9, 10]]), "tag_attention_mask": torch.ones(2, 2, dtype=torch.long)}
    tags["tag_scores"] = torch.ones(2, 2)
    answers, words = torch.tensor([0, 1]), [20, 30]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(**inputs, **tags).logits[:, -1, words], answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert model.eval()(**inputs, **tags).logits[:, -1, words].argmax(-1).tolist() == [0, 1]


def test_the_command_makes_one_that_evaluate_takes(folder, tmp_path, capsys):
    router, scores = str(tmp_path / "router"), str(tmp_path / "scores")
    command = ["fit-router", folder, "--data", "scenes:train,size=6,tasks=vqa", "--output", router]
    assert main([*command, "--tag-encoder", str(BACKBONES / "tag_encoder")]) == 0
    statistics = load_file(f"{router}/model.safetensors")
    fitted = int(statistics["route.router.image_typicality.count"])
    assert fitted + int(statistics["route.router.image_typicality.calibration_count"]) == 6
    command = ["evaluate", router, "--data", "scenes:test,size=6", "--task", "vqa", "--max-new-tokens", "2"]
    assert main([*command, "--resamples", "0", "--output", scores]) == 0
    result = json.loads((tmp_path / "scores" / "metrics.json").read_text(encoding="utf-8"))
    assert "The image shows" not in result["prompt"]  # tags go to the router, not into the words

    found = tmp_path / "diagnosis"
    command = ["diagnose", router, "--data", "scenes:test,size=4", "--only", "coalitions", "router", "--device", "cpu"]
    assert main([*command, "--baselines", "swap", "--max-new-tokens", "2", "--output", str(found)]) == 0
    result = json.loads((found / "diagnosis.json").read_text(encoding="utf-8"))
    assert result["players"] == ["image", "question"]
    # Six images are too few for a verdict: with and without the router the model says the same.
    assert result["router"]["noise_image_weight"] == 1.0
    for name, value in result["coalitions_without_router"].items():
        assert result["coalitions"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    printed = capsys.readouterr().out
    assert printed.index("with its router") < printed.index("without its router")
