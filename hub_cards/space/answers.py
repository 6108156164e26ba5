"""What a Space asks its model: three answers side by side, the tagger's proposals, and what the router did.

`poise space` copies this file beside `app.py`. There it runs without Poise, with transformers and the code that the
model's own repository brings along.
"""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

SETTINGS_FILE = "space.json"
MAX_TAGS = 64
MAX_PIXELS = 20_000_000  # of an uploaded image; a small file can claim to be far larger
LONGEST_SIDE = 1536  # pixels; towers see fewer
DAMAGES = {"noise": "noise", "blur": "blur", "darkness": "low_light", "a covered part": "occlusion", "JPEG": "jpeg"}
LONGEST_QUESTION = 500  # characters

# name of the column, whether the model sees the image, whether it sees the tags
RUNS = (("Image and tags", True, True), ("Tags only", False, True), ("Image only", True, False))


@dataclass(frozen=True)
class Answer:
    """One of the three: `title` of its column, `text`, and the router's weights in [0, 1] (`None` without a router)."""

    title: str
    text: str
    image_weight: float | None
    tag_weight: float | None
    sees_image: bool = True
    sees_tags: bool = True


@dataclass(frozen=True)
class Answers:
    """
    All three, and `gaze`: what the router takes from each patch of the image (rows of floats that sum to 1, or `None`
    for a router that treats all of them alike).
    """

    runs: tuple
    gaze: list | None


def check_tags(rows):
    """
    `[[name, score], ...]` out of what stands in the table; empty rows are left out.

    Raises:
        ValueError: a score without a name, or one that is no number from 0 to 1; or too many tags.
    """
    tags = []
    for place, row in enumerate(rows, start=1):
        name, score = ("" if cell is None else str(cell).strip() for cell in (*row, "", "")[:2])
        if not name and score in ("", "nan"):
            continue
        if not name:
            raise ValueError(f"Tag {place} has a score but no name: write what the tag says, or empty the row.")
        try:
            value = float(score.replace(",", "."))
        except ValueError:
            raise ValueError(f"The score of “{name}” is {score!r}: write a number from 0 to 1.") from None
        if not 0 <= value <= 1:  # also NaN
            raise ValueError(f"The score of “{name}” is {score}: write a number from 0 to 1.")
        tags.append([" ".join(name.split()), value])
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags are too many: at most {MAX_TAGS}.")
    return tags


def read_image(path):
    """
    An uploaded file as an RGB image; its size is checked before it is decoded, and nothing is fetched.

    Raises:
        ValueError: it is no image, damaged, or too large; the message does not name the server's folders.
    """
    from images.image_loading import open_image

    try:
        image = open_image(Path(path), MAX_PIXELS)
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace(f"image={str(path)!r}", "The image")) from None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def damaged(image, kind, severity):
    """An image degraded by one of `DAMAGES`, from 0 (as it is) to 5; the same damage every time."""
    import numpy as np
    from images.image_degradations import IMAGE_DEGRADATIONS

    if not severity:
        return image
    return IMAGE_DEGRADATIONS[DAMAGES[kind]](image.convert("RGB"), int(severity), np.random.default_rng(0), None)


class AnsweringModel:
    """
    A model that is loaded in the background, so that the page is there at once and can say so.

    Args:
        settings (`dict`): `model` and `tagger` (Hub ids or folders, the tagger may be `None`), `max_new_tokens`.
    """

    def __init__(self, settings):
        self.settings = settings
        self.model = self.processor = self.tagger = None
        self.tagger_problem = None if settings.get("tagger") else "No tagger was given to this Space."
        self.problem = None
        self.ready = threading.Event()
        self._one_at_a_time = threading.Lock()

    @classmethod
    def of_folder(cls, folder):
        """From the `space.json` of a Space."""
        return cls(json.loads((Path(folder) / SETTINGS_FILE).read_text(encoding="utf-8")))

    def start_loading(self):
        """Return at once; `ready` is set when it is loaded, or when `problem` says why it cannot be."""
        threading.Thread(target=self._load, daemon=True).start()

    def _load(self):
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor

            name = self.settings["model"]
            self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
            model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
            self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
            if self.settings.get("tagger"):
                self._load_tagger(self.settings["tagger"])
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            self.problem = " ".join(str(error).split())[:300] or type(error).__name__
        finally:
            self.ready.set()

    def _load_tagger(self, name):
        """A tagger that cannot be loaded takes nothing away but its proposals."""
        from huggingface_hub import snapshot_download
        from tagger.taggers import DualEncoderTagger

        try:
            folder = name if Path(name).is_dir() else snapshot_download(name)
            self.tagger = DualEncoderTagger.from_pretrained(folder, trust_remote_code=True)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            self.tagger_problem = f"The tagger could not be loaded: {' '.join(str(error).split())[:200]}"

    def propose(self, image):
        """
        The tagger's tags of an image, best first: `[[name, score], ...]`.

        Raises:
            ValueError: there is no tagger.
        """
        if self.tagger is None:
            raise ValueError(self.tagger_problem or "The tagger is not loaded yet.")
        with self._one_at_a_time:
            return [[name, round(float(score), 2)] for name, score in self.tagger([image.convert("RGB")])[0]]

    def answer(self, image, question, tags):
        """
        Ask three times in one batch: with everything, with a grey image, and without tags.

        Args:
            image (`PIL.Image`), question (`str`), tags: see `check_tags`.

        Raises:
            ValueError: no image, no question, one that is too long, or the model is not there.
        """
        if image is None:
            raise ValueError("There is no image yet: upload one, or choose an example below.")
        question = (question or "").strip()
        if not question:
            raise ValueError("There is no question yet: write what you want to know about the image.")
        if len(question) > LONGEST_QUESTION:
            raise ValueError(f"The question has {len(question)} characters: at most {LONGEST_QUESTION}.")
        if self.model is None:
            raise ValueError(self.problem or "The model is still loading: try again in a moment.")
        image = image.convert("RGB")
        conversations = [
            self._conversation(image if sees_image else self._grey(image), question, tags if sees_tags else [])
            for _, sees_image, sees_tags in RUNS
        ]
        with self._one_at_a_time:
            texts, weights, gaze = self._run(conversations)
        runs = [
            Answer(title, text, *(pair if pair is not None else (None, None)), sees_image, sees_tags)
            for (title, sees_image, sees_tags), text, pair in zip(RUNS, texts, weights, strict=True)
        ]
        return Answers(tuple(runs), gaze)

    @staticmethod
    def _conversation(image, question, tags):
        content = [{"type": "image", "image": image, "tags": tags}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    def _grey(self, image):
        """An image of the same size that says nothing: the mean colour, which the vision tower reads as zero."""
        from PIL import Image

        mean = getattr(self.processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        return Image.new("RGB", image.size, tuple(round(255 * float(part)) for part in mean))

    def _run(self, conversations):
        """Texts, pairs of router weights (or `None`s), and the gaze over the first image (or `None`)."""
        import torch

        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device)
        seq2seq = self.model.config.is_encoder_decoder
        extra = {}
        if seq2seq:
            start = self.model.generation_config.decoder_start_token_id
            extra["decoder_input_ids"] = torch.full((len(conversations), 1), start, device=self.model.device)
        with torch.no_grad(), Gaze(self.model) as gaze:
            weights = self.model(**inputs, **extra).router_weights  # (3, 2)
            limit = self.settings.get("max_new_tokens", 32)
            tokens = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)  # (3, T)
        if not seq2seq:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        texts = [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        if weights is None:
            return texts, [None] * len(texts), None
        return texts, [[round(float(weight), 4) for weight in pair] for pair in weights], gaze.rows


class Gaze:
    """
    Where a reliability router looks: its stand-in for the tags attends to the patches of the image.

    While it is open it watches the model; afterwards `rows` holds the attention over the first image's patches, or
    `None` where the model has no such router.
    """

    def __init__(self, model):
        self.rows = None
        self._count = model.config.num_image_tokens
        self._complement = getattr(getattr(model.model, "router", None), "text_complement", None)
        self._handle = None

    def __enter__(self):
        if self._complement is not None:
            self._handle = self._complement.register_forward_hook(self._look)
        return self

    def __exit__(self, *error):
        if self._handle is not None:
            self._handle.remove()

    def _look(self, complement, inputs, output):
        tokens = inputs[0][0]  # (P, D) of the first image
        query = complement.query(complement.null)  # (D,)
        logits = complement.key(tokens) @ query / query.shape[0] ** 0.5  # (P,)
        side = round(self._count**0.5)
        if logits.shape[0] == side * side:
            self.rows = logits.softmax(-1).reshape(side, side).tolist()
