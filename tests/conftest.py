"""Shared by every test: offline, one thread a process, no trace in the home folder, the harmless noise filtered."""

import atexit
import os
import shutil
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

from poise.library_noise import quiet_libraries  # noqa: E402

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
