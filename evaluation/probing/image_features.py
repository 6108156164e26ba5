"""What a model's own `get_image_features` gives its language model, as one matrix of rows that can be replaced.

A model merges image features and words by itself, and some of its families give the merged sequence positions in three
dimensions, bidirectional attention or features for deeper layers on the way. So nothing is merged here: the model's own
`forward` runs, and only what `get_image_features` returns and what the embedding of the words returns is changed.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .parts import ModelParts

# Fields beside `pooler_output` whose rows belong to the same places: features that are added in deeper layers.
_DEEPER = ("deepstack_features",)


class _Stop(Exception):
    """Ends a forward pass once the image features are known."""


class ImageFeatures:
    """
    Rows (N, D') of everything that the language model is given at its N image tokens, in their order.

    D' is D, or D·(1 + S) for a family that adds S more features in deeper layers (DeepStack).

    Args:
        output: what `get_image_features` returned.
    """

    def __init__(self, output: Any):
        self.output = output
        values = [output]
        if isinstance(output, Mapping):
            # Fuyu's vision tower is one linear layer, whose output it calls hidden states; Granite 4 Vision's tokens
            # enter in deeper layers alone.
            given = [name for name in ("pooler_output", "last_hidden_state") if output.get(name) is not None]
            self._main = given[:1]
            values = [output[name] for name in self._main]
            for name in _DEEPER:
                values.extend(output.get(name) or ())
        self._values = values
        self.rows: torch.Tensor = torch.cat([_rows(value) for value in values], dim=-1)  # (N, D')

    @property
    def per_image(self) -> list[int]:
        """How many rows each image, or each tile that the model returns by itself, has."""
        value = self._values[0]
        if isinstance(value, torch.Tensor):
            return [value.shape[1]] * value.shape[0] if value.dim() == 3 else [value.shape[0]]
        return [_rows(some).shape[0] for some in value]

    def with_rows(self, rows: torch.Tensor) -> Any:
        """The same output with other rows (N, D')."""
        widths = [_rows(value).shape[-1] for value in self._values]
        values = [_like(value, part) for value, part in zip(self._values, rows.split(widths, dim=-1), strict=True)]
        if not isinstance(self.output, Mapping):
            return values[0]
        output: Any = copy.copy(self.output)
        rest = values
        for name in self._main:
            output[name], rest = rest[0], rest[1:]
        for name in _DEEPER:
            if count := len(self.output.get(name) or ()):
                output[name], rest = rest[:count], rest[count:]
        return output


def _rows(value: Any) -> torch.Tensor:
    """(N, P, D), (N, D) or a list of either as (N', D); (number of a layer, one of these) as these."""
    if isinstance(value, torch.Tensor):
        return value.reshape(-1, value.shape[-1])
    if isinstance(value[0], int):
        return _rows(value[1])
    return torch.cat([_rows(some) for some in value])


def _like(value: Any, rows: torch.Tensor) -> Any:
    """`rows` (N', D) in the shape of `value`."""
    if isinstance(value, torch.Tensor):
        return rows.reshape(value.shape).to(value.dtype)
    if isinstance(value[0], int):
        return (value[0], _like(value[1], rows))
    sizes = [_rows(some).shape[0] for some in value]
    return type(value)(_like(some, part) for some, part in zip(value, rows.split(sizes), strict=True))


@torch.no_grad()
def image_features(parts: ModelParts, inputs: Mapping[str, Any]) -> ImageFeatures:
    """
    What the model's own forward pass fills its placeholders with. The language model does not run.

    Args:
        inputs: of the model's `forward`.

    Raises:
        ValueError: the family has no such seam, or `inputs` holds no image.
    """
    parts.check_image_tokens("image tokens")
    seen: list[Any] = []

    def keep(original: Callable, *args: Any, **kwargs: Any) -> Any:
        seen.append(original(*args, **kwargs))
        raise _Stop

    with _in_place_of(parts, keep):
        try:
            parts.model(**inputs, use_cache=False)
        except _Stop:
            pass
        except (ValueError, RuntimeError, TypeError, AttributeError, LookupError) as error:
            raise ValueError(
                f"{type(parts.model).__name__} cannot read what its processor makes of an image "
                f"({' '.join(str(error).split())[:120]}): use the processor that was saved with the model."
            ) from error
    if not seen:
        raise ValueError("inputs hold no image: give what the processor makes of one, pixel_values among it.")
    return ImageFeatures(seen[0])


@contextmanager
def _in_place_of(parts: ModelParts, function: Callable) -> Iterator[None]:
    """Within it `function(original, ...)` is called wherever the model asks for image features."""
    owner: Any = parts.image_owner
    name = parts.image_method
    original, earlier = getattr(owner, name), vars(owner).get(name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(original, *args, **kwargs)

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        if earlier is None:
            delattr(owner, name)
        else:
            setattr(owner, name, earlier)


@dataclass(frozen=True)
class Change:
    """
    Other vectors at some places of the prompts.

    Attributes:
        places (B, T) bool: all of them image tokens, or none.
        vectors (n, D') or (D',): one for each place in reading order, or the same for all. D' is the width of
            [`ImageFeatures`] for image tokens, the embedding's for words.
    """

    places: torch.Tensor
    vectors: torch.Tensor


@contextmanager
def changed_reading(
    parts: ModelParts,
    input_ids: torch.Tensor,
    image_places: torch.Tensor,
    features: ImageFeatures | None,
    changes: Sequence[Change] = (),
) -> Iterator[None]:
    """
    Within it the model reads `features` in place of running its vision tower, with `changes`; in `forward` and in
    `generate`, with what follows the prompt as it is.

    Args:
        input_ids (B, T): of the prompts.
        image_places (B, T) bool: where the features stand.
        features: of the prompts; `None` where nothing but words is changed.
        changes (*optional*): a place that occurs twice takes the later one.
    """
    image = [change for change in changes if bool((change.places & image_places).any())]
    words = [change for change in changes if bool((change.places & ~image_places).any())]
    with ExitStack() as stack:
        if features is not None:
            rows = features.rows
            for change in image:
                chosen = change.places[image_places]  # (N,)
                rows = rows.masked_scatter(
                    chosen[:, None], change.vectors.to(rows).expand(int(chosen.sum()), rows.shape[-1])
                )
            output = features.with_rows(rows) if image else features.output
            stack.enter_context(_in_place_of(parts, lambda original, *args, **kwargs: copy.copy(output)))
        if words:
            embedding = parts.model.get_input_embeddings()
            handle = embedding.register_forward_hook(_other_words(input_ids, image_places, words))
            stack.callback(handle.remove)
        yield


def _other_words(input_ids: torch.Tensor, image_places: torch.Tensor, changes: Sequence[Change]) -> Callable:
    """A hook on the embedding that changes the prompts' vectors and leaves those of anything else."""

    def hook(module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        ids, (batch, length) = args[0], input_ids.shape
        # An encoder-decoder embeds its answers here, too; some families write another id over their placeholders.
        prompt = ids.shape[-1] >= length and ids.shape[0] == batch
        if not prompt or not bool(((ids[:, :length] == input_ids) | image_places).all()):
            return None
        vectors = output.clone()  # (B, T + A, D)
        for change in changes:
            vectors[:, :length][change.places] = change.vectors.to(output)
        return vectors

    return hook
