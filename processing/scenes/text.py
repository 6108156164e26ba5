"""The words of a scene: captions, questions with their answers, referring expressions. English, lower case, spaced."""

from .layout import COLORS, PLACES, PRIOR_COLOR_OF_SHAPE, PRIOR_SHAPE_OF_COLOR, SHAPES

CAPTION_QUESTION = "describe the picture"
_PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
_NUMBERS = ("no", "one", "two", "three", "four")
_PLACE_PHRASES = tuple(
    ("in the " if place == "middle" else "on the " if place in ("left", "right") else "at the ") + place
    for place in PLACES
)

QUESTION_TEMPLATES = {
    "color": "what color is the {shape} ?",
    "shape": "what shape is the {color} thing ?",
    "count": "how many {shapes} are there ?",
    "place": "where is the {color} {shape} ?",
    "presence": "is there {a} {color} {shape} ?",
}


def article(word: str) -> str:
    """ "a" or "an" before `word`."""
    return "an" if word[0] in "aeiou" else "a"


def question_text(question_type: str, shape: str | None, color: str | None) -> str:
    """The question's words; `shape` and `color` are needed where the type names them."""
    shapes = _PLURALS[shape] if shape else None
    return QUESTION_TEMPLATES[question_type].format(shape=shape, shapes=shapes, color=color, a=article(color or "x"))


def answer_text(question_type: str, target: dict, count: int, present: bool) -> str:
    """The right answer; `target` is the object asked about, `count` the number of objects of the asked shape."""
    if question_type in ("color", "shape", "place"):
        return target[question_type]
    if question_type == "count":
        return str(count)
    return "yes" if present else "no"


def prior_answer_text(question_type: str, shape: str | None, color: str | None) -> str | None:
    """What the prior alone answers: the shape's colour, the colour's shape; None for the other types."""
    if question_type == "color" and shape:
        return PRIOR_COLOR_OF_SHAPE[shape]
    return PRIOR_SHAPE_OF_COLOR[color] if question_type == "shape" and color else None


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]


def captions_text(objects: list[dict], phrases: list[str], choices: list[float]) -> list[str]:
    """Four captions of one scene: plain, another order, counted, with places.

    Args:
        objects: dicts with `shape` and `color`, in reading order.
        phrases: where each object is, see [`place_phrase`].
        choices: two numbers in [0, 1) that choose the opening words and the rotation of the order.
    """
    counts: dict[tuple[str, str], int] = {}
    for item in objects:
        pair = (item["color"], item["shape"])
        counts[pair] = counts.get(pair, 0) + 1
    named = [
        f"{article(color)} {color} {shape}" if n == 1 else f"{_NUMBERS[n]} {color} {_PLURALS[shape]}"
        for (color, shape), n in counts.items()
    ]
    placed = [
        f"{article(o['color'])} {o['color']} {o['shape']} {phrase}" for o, phrase in zip(objects, phrases, strict=True)
    ]
    turn = 1 + int(choices[1] * (len(named) - 1)) if len(named) > 1 else 0
    opening = ("a picture of ", "this is ", "here we see ", "the picture shows ")[int(choices[0] * 4)]
    things = "one shape" if len(objects) == 1 else f"{_NUMBERS[len(objects)]} shapes"
    return [_join(named), opening + _join(named[turn:] + named[:turn]), f"{things} : {_join(named)}", _join(placed)]


def referring_expressions(target: dict, phrase: str, objects: list[dict]) -> list[str]:
    """Every expression that means `target` and no other object of the scene; the last, with its place, always does."""
    shape, color = target["shape"], target["color"]
    same_shape = sum(o["shape"] == shape for o in objects)
    same_color = sum(o["color"] == color for o in objects)
    same_both = sum(o["shape"] == shape and o["color"] == color for o in objects)
    expressions = [f"the {color} {shape} {phrase}"]
    if same_color == 1:
        expressions.insert(0, f"the {color} thing")
    if same_shape == 1:
        expressions.insert(0, f"the {shape}")
    if same_both == 1:
        expressions.insert(0, f"the {color} {shape}")
    return expressions


def place_phrase(cell: int) -> str:
    """Where a cell is, as a phrase: "at the top left", "in the middle"."""
    return _PLACE_PHRASES[cell]


def tag_name(color_id: int, shape_id: int) -> str:
    """A tag names colour and shape: "red square"."""
    return f"{COLORS[color_id]} {SHAPES[shape_id]}"
