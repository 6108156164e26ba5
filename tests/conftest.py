"""Shared by every test: offline, one thread a process, no trace in the home folder, the harmless noise filtered."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# All of this must stand before the first import of torch, transformers or datasets in a test module.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist runs one process a core
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# Remote code is copied below HF_HOME when it is loaded: every worker gets its own, or two of them race for the files.
_cache = tempfile.mkdtemp(prefix="poise-tests-cache-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["HF_HOME"] = _cache
os.environ["MPLCONFIGDIR"] = os.path.join(_cache, "matplotlib")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from poise.command_line import quiet_libraries  # noqa: E402

quiet_libraries()

# Two workers share two cores: the time of one example says nothing. Examples are the same in every run.
settings.register_profile("poise", deadline=None, derandomize=True)
settings.load_profile("poise")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The read-only material beside the checkout (real photos, reference values); the test is skipped without it."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the material in ../shared is not on this machine")
    return folder


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def tiny_dual_encoder():
    """`tiny_dual_encoder(**fields)`: the shipped vision tower and tag encoder with a new head, the same every time."""
    import torch

    from poise.modeling import PoiseDualEncoder
    from poise.training.backbone_loading import tiny_backbone_path

    def make(text="tag_encoder", **fields):
        torch.manual_seed(0)
        fields = {"embed_dim": 32, **fields}
        return PoiseDualEncoder.from_backbones(tiny_backbone_path("vision"), tiny_backbone_path(text), **fields)

    return make


@pytest.fixture(scope="session")
def tiny_pair_processor():
    """Image processor of the tiny tower and tokenizer of the tiny tag encoder."""
    from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderProcessor

    from poise.training.backbone_loading import tiny_backbone_path

    return VisionTextDualEncoderProcessor(
        AutoImageProcessor.from_pretrained(tiny_backbone_path("vision")),
        AutoTokenizer.from_pretrained(tiny_backbone_path("tag_encoder")),
    )


@pytest.fixture(scope="session")
def models_by_language():
    """The same two models for the whole session; tests leave them as they are."""
    from scene_models import make_model

    return {language: make_model(language) for language in ("llama", "t5")}


@pytest.fixture
def tiny_model_factory():
    """Makes a model of its own: `(language, seed=0, **config_fields) -> (model, processor)`."""
    from scene_models import make_model

    return make_model


@pytest.fixture(params=["llama", "t5"])
def model_and_processor(request, models_by_language):
    return models_by_language[request.param]


@pytest.fixture(scope="session")
def scenes():
    """Records of all three tasks."""
    from poise.processing import Scenes

    return [dict(record) for record in Scenes("test", size=24)]
