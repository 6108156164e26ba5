"""A tag: a name and how sure the tagger is of it. Checking, parsing and ordering; no tokenizer here."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

DIRECTION_MARKS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def invisible_character(name: str) -> str | None:
    """
    The first control character, half surrogate pair or mark of direction of a name.

    NUL ends texts in other programs, half a surrogate pair cannot be stored, and marks of direction turn around what a
    reader sees of a card or a page.
    """
    return next((c for c in name if unicodedata.category(c) in ("Cc", "Cs") or c in DIRECTION_MARKS), None)


class Tag(NamedTuple):
    """What a tagger says about an image: `name`, and its `score` in [0, 1].

    Examples:
        >>> Tag("dog", 0.97).score
        0.97
    """

    name: str
    score: float


def check_tag(entry: Any, argument: str = "tag") -> Tag:
    """Makes a `Tag` of a (name, score) pair, of a name alone (score 1), or of a mapping.

    A mapping `{"name": ..., "score": ...}` is the form that Arrow columns can hold.

    Args:
        entry: the pair, name or mapping. White space in the name is tidied.
        argument (`str`, *optional*, defaults to `"tag"`): how the error calls the entry, such as `"tags[0][3]"`.

    Raises:
        TypeError: not a pair, the name is no string, or the score no number.
        ValueError: the name is empty or holds a control character or a mark of direction, or the score is NaN or
            outside [0, 1].
    """
    pair = (entry.get("name"), entry.get("score")) if isinstance(entry, Mapping) else entry
    if isinstance(entry, str):
        pair = (entry, 1.0)
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise TypeError(f'{argument}={entry!r} is not a tag: give a (name, score) pair such as ("dog", 0.97).')
    name, score = pair
    if not isinstance(name, str):
        raise TypeError(f"{argument}={entry!r}: the name must be a string, not {type(name).__name__}.")
    if isinstance(score, bool) or not isinstance(score, Real):
        raise TypeError(f"{argument}={entry!r}: the score must be a number in [0, 1], not {type(score).__name__}.")
    name, score = " ".join(name.split()), float(score)
    if not name:
        raise ValueError(f"{argument}={entry!r}: the name is empty; leave the tag out.")
    unseen = invisible_character(name)
    if unseen is not None:
        raise ValueError(f"{argument}={name!a}: the name holds the invisible character {unseen!a}; remove it.")
    if math.isnan(score) or not 0.0 <= score <= 1.0:
        raise ValueError(f"{argument}={entry!r}: the score must lie in [0, 1]; turn logits into probabilities first.")
    return Tag(name, score)


def check_tags(tags: Sequence[Any] | None, argument: str = "tags") -> list[Tag]:
    """The tags of one image, checked and sorted by falling score (equal scores keep their order). `None` is no tags.

    Raises:
        TypeError, ValueError: as `check_tag`, naming the entry's place in `argument`.

    Examples:
        >>> check_tags([("ball", 0.6), {"name": "dog", "score": 0.97}])
        [Tag(name='dog', score=0.97), Tag(name='ball', score=0.6)]
    """
    if tags is None:
        return []
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise TypeError(f'{argument}={tags!r} is not a list of (name, score) pairs such as [("dog", 0.97)].')
    checked = [check_tag(entry, f"{argument}[{place}]") for place, entry in enumerate(tags)]
    return sorted(checked, key=lambda tag: -tag.score)


def check_tags_of_images(tags: Sequence[Any] | None, num_images: int) -> list[list[Tag]]:
    """One sorted list of tags per image out of what a caller gave; for a single image the inner list alone will do.

    Raises:
        TypeError, ValueError: as `check_tag`; or the number of lists is not `num_images`.
    """
    if tags is None:
        return [[] for _ in range(num_images)]
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise TypeError(f'tags={tags!r} must hold one list per image, such as [[("dog", 0.97)]].')
    if num_images == 1 and len(tags) > 0 and _looks_like_a_tag(tags[0]):
        tags = [tags]
    if len(tags) != num_images:
        raise ValueError(
            f"tags holds {len(tags)} lists for {num_images} images: give one list per image in reading order, "
            "[] for an image without tags."
        )
    return [check_tags(tags_of_image, f"tags[{place}]") for place, tags_of_image in enumerate(tags)]


def _looks_like_a_tag(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        return True
    if isinstance(entry, str):
        return True
    # ["dog", "cat"] are the names of one image's tags, ("dog", 0.97) is a tag.
    is_pair = isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[0], str)
    return is_pair and not (isinstance(entry[1], str) and not _is_number(entry[1]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_tags(text: str) -> list[Tag]:
    """Reads tags as they are typed on a command line, `"dog:0.97,ball:0.6"`, sorted by falling score.

    A name alone has score 1; one with colons needs a score behind it, and none may hold a comma. An empty text is no
    tags.

    Raises:
        ValueError: the score is no number, or it is not a valid tag.

    Examples:
        >>> parse_tags("dog:0.97,ball:0.6")
        [Tag(name='dog', score=0.97), Tag(name='ball', score=0.6)]
    """
    parsed = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, score = part.rpartition(":")
        try:
            parsed.append((name, float(score)) if colon else (part, 1.0))
        except ValueError:
            raise ValueError(f"tags={text!r}: the score of {part!r} is no number; write name:score.") from None
    return check_tags(parsed)
