"""What a tag encoder learned about scores travels into the model that is built on it."""

import shutil

import torch
from safetensors.torch import save_file

from poise.training.backbone_loading import SCORE_EMBEDDING_FILE, tiny_backbone_path
from poise.training.sft.assembly import assemble
from poise.training.sft.recipe import load_recipe


def test_a_learned_score_embedding_is_loaded(tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_backbone_path("tag_encoder"), folder)
    overrides = {"model.tag_encoder": str(folder), "tag_score_encoding": "embedding"}
    untrained, _ = assemble(load_recipe("demo", overrides))
    drawn = untrained.model.soft_prompt.score_embedding.state_dict()
    learned = {name: torch.full_like(value, 0.25) for name, value in drawn.items()}
    save_file(learned, folder / SCORE_EMBEDDING_FILE)
    model, _ = assemble(load_recipe("demo", overrides))
    for name, value in model.model.soft_prompt.score_embedding.state_dict().items():
        assert torch.equal(value, learned[name]) and not torch.equal(drawn[name], learned[name])
