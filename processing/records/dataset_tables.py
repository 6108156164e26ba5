"""Tables of `datasets`: loaded by name, with their images left encoded until they are asked for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..image_loading import image_size
from .published_formats import undecoded_image
from .record_images import is_inside, path_inside


def load_table(name: str, config: str | None, split: str, streaming: bool = False) -> Any:
    """A `datasets` table: saved on disk, a folder that `datasets` reads, or a repository of the Hub."""
    import datasets

    path = Path(name)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        table = _saved(path, split)
        return table.to_iterable_dataset() if streaming else table
    try:
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data={name!r} is no file or folder here and could not be loaded as a data set ({reason}): check "
            "the name, and the connection if it is one of the Hub."
        ) from None
    except ValueError as error:  # a split or a configuration that is not there; datasets names those that are
        reason = " ".join(str(error).split())
        raise ValueError(f"split={split!r} of {name!r} could not be read: {reason}") from None


def _saved(path: Path, split: str) -> Any:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise ValueError(f"split={split!r} is none of {str(path)!r}: it has {', '.join(loaded)}.")
    return loaded[split]


def parquet_table(file: Path) -> Any:
    """The table of one Parquet file, images undecoded."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    try:
        return undecoded(datasets.Dataset(parquet.read_table(file)))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"data={str(file)!r} is no Parquet file ({' '.join(str(error).split())}); write it again."
        ) from None


def undecoded(table: Any) -> Any:
    """A table whose images stay encoded."""
    import datasets

    for name, feature in table.features.items():
        encoded = datasets.Image(decode=False)
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, encoded)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(encoded))
    return table


def holds_images(table: Any, column: str) -> bool:
    """Whether a column is one of images."""
    import datasets

    return isinstance((table.features or {}).get(column), datasets.Image)


def undecoded_inside(stored: Mapping[str, Any], folder: Path) -> Any:
    """As `undecoded_image`, of a file only below `folder`, which is the table's, or in the cache of `datasets`."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    image = undecoded_image(stored)
    caches = (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    if isinstance(image, str) and not any(is_inside(image, cache) for cache in caches):
        path_inside(folder, os.path.abspath(image))
    return image


class ImageOfRow:
    """Stands for the image of a row while records are made of it; its size is read when a box asks for it."""

    def __init__(self, table: Any, column: str, number: int, folder: Path):
        self.table, self.column, self.number, self.folder = table, column, number, folder

    @property
    def size(self) -> tuple[int, int]:
        return image_size(undecoded_inside(self.table[self.number][self.column], self.folder))


class ImagesOfRows:
    """Images of records in a table that keeps them encoded; several records may share one."""

    def __init__(self, table: Any, column: str, numbers: list[int], folder: Path):
        self.table, self.column, self.numbers, self.folder = table.select_columns(column), column, numbers, folder

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = self.table[self.numbers[index]][self.column]
        return {"image": None if stored is None else undecoded_inside(stored, self.folder)}
