# /// script
# requires-python = ">=3.11"
# dependencies = ["poise @ git+https://github.com/poise-vlm/poise"]
# ///
"""Give a vision-language model a sense for images that it should not be asked about, without training it.

    python examples/image_reliability.py llava-hf/llava-1.5-7b-hf --data photos/train.jsonl --images photo.jpg

One pass of the model's own vision tower over sound images gives the statistics; an image that is unlike them (noise,
blur, a lens cap) gets a low weight. The model itself stays as it is. `poise fit-router` is the same as a command.
"""

import argparse

from PIL import ImageFilter
from transformers import AutoModelForImageTextToText, AutoProcessor

from poise.evaluation.data_sources import load_data_source
from poise.modeling.image_reliability import ImageReliability
from poise.processing import open_image

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--images", nargs="+", default=[], help="to judge")
parser.add_argument("--data", default="scenes:train,size=600", help="records with sound images, 400 or more")
parser.add_argument("--output", default="outputs/reliability")
arguments = parser.parse_args()

records = load_data_source(arguments.data)
model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="auto").eval()
processor = AutoProcessor.from_pretrained(arguments.model)

reliability = ImageReliability.fitted(model, processor, (records[row]["image"] for row in range(len(records))))
reliability.save_pretrained(arguments.output)  # push_to_hub shares it

sound = records[0]["image"]
named = {"a sound image": sound, "the same, blurred": sound.filter(ImageFilter.GaussianBlur(sound.width / 8))}
named |= {name: open_image(name) for name in arguments.images}
for name, image in named.items():
    trust = reliability.trust(model, processor, image)
    print(f"{trust:.2f}  {name}" + ("" if trust >= 0.5 else "  (do not rely on an answer about it)"))
