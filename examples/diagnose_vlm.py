# /// script
# requires-python = ">=3.11"
# dependencies = ["poise @ git+https://github.com/poise-vlm/poise"]
# ///
"""Does a vision-language model look at the image, or only at the words? For any such model of transformers.

    python examples/diagnose_vlm.py llava-hf/llava-1.5-7b-hf --data records/questions.jsonl
    hf jobs uv run examples/diagnose_vlm.py llava-hf/llava-1.5-7b-hf --flavor a10g-small

Every question is asked with the image and with another sample's image in its place. A model that answers from the
question alone answers both times the same.
"""

import argparse

from transformers import AutoModelForImageTextToText, AutoProcessor

from poise.evaluation.data_sources import load_data_source
from poise.evaluation.intervals import Score
from poise.evaluation.robustness.evaluator import RobustnessEvaluator

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--data", default="scenes:prior_broken,question_types=color")
parser.add_argument("--samples", type=int, default=200)
arguments = parser.parse_args()

records = load_data_source(arguments.data, arguments.samples, task="vqa")
model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="auto")
processor = AutoProcessor.from_pretrained(arguments.model)

evaluator = RobustnessEvaluator(degradations=["swapped_image", "blank", "noise"], severities=[5], resamples=200)
scores = evaluator(model, processor, records)

print(f"with the image           {scores['clean']:.2f}")
for degradation in evaluator.degradations:
    print(f"{degradation:<24} {Score.read(scores, f'{degradation}_5').text('.2f')}")
lost = scores["clean"] - scores["swapped_image_5"]
print(f"{lost:.2f} of the accuracy comes from the image; the rest is what the words alone are worth.")
