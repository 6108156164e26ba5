"""A folder is loaded where Poise cannot be imported; what is wrong with a folder is found there and said."""

import shutil

import pytest

from poise.hub_cards.publishing.clean_process import answer
from poise.hub_cards.publishing.self_check import SelfCheckError, check_loads_without_poise


@pytest.fixture
def folder(built, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(built.folder, tmp_path / "model")


@pytest.mark.slow
def test_answers_as_the_model_in_this_process(built, samples):
    answers = check_loads_without_poise(built.folder, samples, max_new_tokens=6)
    assert answers == [answer(built.model, built.processor, sample, 6) for sample in samples]
    assert any(answers)


def test_code_that_imports_poise_is_caught(folder, samples):
    path = folder / "streams.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nimport poise.modeling\n", encoding="utf-8")
    with pytest.raises(SelfCheckError, match="published code must not import|poise"):
        check_loads_without_poise(folder, samples)


@pytest.mark.slow
def test_a_missing_file_of_code_is_named(folder, samples):
    (folder / "streams.py").unlink()
    with pytest.raises(SelfCheckError, match="streams"):
        check_loads_without_poise(folder, samples)


@pytest.mark.slow
def test_a_cut_weight_file_is_caught(folder, samples):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SelfCheckError, match=r"Error.*safetensors|incomplete|invalid") as caught:
        check_loads_without_poise(folder, samples)
    assert "Traceback" in caught.value.log and "\n" not in str(caught.value)


def test_no_folder_and_no_image_are_said_before_any_process_starts(built, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        check_loads_without_poise(tmp_path / "nothing", [])
    with pytest.raises(ValueError, match="is not there"):
        check_loads_without_poise(built.folder, [{"image": tmp_path / "none.png", "question": "what ?"}])


def test_a_process_that_takes_too_long_is_ended(built, samples):
    with pytest.raises(SelfCheckError, match="within 0.01 seconds"):
        check_loads_without_poise(built.folder, samples, timeout=0.01)


def test_no_token_reaches_the_process(tmp_path, monkeypatch):
    from poise.hub_cards.publishing.self_check import clean_environment

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_TOKEN_PATH", "/somewhere")
    assert not {"hf_secret", "/somewhere"} & set(clean_environment(tmp_path, with_cache=False).values())
