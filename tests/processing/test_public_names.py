import subprocess
import sys

import poise.processing


def test_every_public_name_is_found():
    for name in poise.processing.__all__:
        assert getattr(poise.processing, name) is not None
    assert sorted(poise.processing.__all__) == poise.processing.__all__


def test_tags_and_boxes_are_read_without_torch():
    code = (
        "import sys; from poise.processing import box_to_text, open_image, parse_tags, check_task_record;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
