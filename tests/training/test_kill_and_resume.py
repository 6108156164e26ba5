"""Whatever moment a run is killed at, it goes on to exactly what it would have come to."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kill_and_resume.py"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "align", "tag-encoder", "preference"])
def test_ten_kills_change_nothing(stage, tmp_path):
    command = [sys.executable, str(SCRIPT), stage, str(tmp_path / "runs"), "10", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-4000:]
    assert f"{stage}: 10 kills" in result.stdout and "equal to the one that nobody killed" in result.stdout
