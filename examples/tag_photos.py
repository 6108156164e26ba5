# /// script
# requires-python = ">=3.11"
# dependencies = ["poise @ git+https://github.com/poise-vlm/poise"]
# ///
"""Tag a folder of photos and write task records that `poise sft` trains on.

    python examples/tag_photos.py photos/ --tagger facebook/detr-resnet-50
    python examples/tag_photos.py photos/ --tagger openai/clip-vit-base-patch32 --words dog cat ball

`poise tag` does it for records of any form, resumable and over several processes.
"""

import argparse
from pathlib import Path

from poise.processing import write_task_records
from poise.processing.records.model_tagger import ModelTagger

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--tagger", default="facebook/detr-resnet-50")
parser.add_argument("--words", nargs="+", help="what a zero-shot tagger looks for")
parser.add_argument("--question", default="Describe the image.")
parser.add_argument("--output", default="tagged.jsonl")
arguments = parser.parse_args()

tagger = ModelTagger.from_pretrained(arguments.tagger, vocabulary=arguments.words, threshold=0.2)
photos = sorted(path for path in Path(arguments.folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def tagged(batch_size=8):
    for start in range(0, len(photos), batch_size):
        batch = photos[start : start + batch_size]
        for photo, tags in zip(batch, tagger.tag_records([{"image": str(photo)} for photo in batch]), strict=True):
            names = ", ".join(tag.name for tag in tags) or "nothing that the tagger knows"
            yield {
                "id": photo.stem,
                "image": str(photo),
                "task": "caption",
                "question": arguments.question,
                "captions": [f"A photo of {names}."],  # replace it by a caption of your own
                "tags": tags,
            }


count = write_task_records(tagged(), arguments.output)
print(f"{count} records in {arguments.output}; look at them: poise data show {arguments.output}")
