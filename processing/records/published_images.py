"""Where a published annotation's image lies: COCO's file names, and a folder that is searched for them."""

import os
import re
from pathlib import Path
from typing import Any

from .record_images import path_inside


def coco_file_name(image_id: Any, subset: str) -> str:
    """COCO's name of an image, such as `COCO_train2014_000000000009.jpg`; from 2017 on it is the number alone."""
    number = f"{int(image_id):012d}.jpg"
    return f"COCO_{subset}_{number}" if subset.endswith("2014") or subset.endswith("2015") else number


class ImageFolder:
    """Finds images below one folder by the file names that annotations give.

    Annotations name an image by its file (`COCO_val2014_000000310196.jpg`), with folders before it, or by the name of
    another release of the same image (`000000310196.jpg`); any of these is found.

    Args:
        folder: searched with all that is below it, once.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"images={str(folder)!r} is no folder: name the folder that holds the images.")
        self.files: dict[str, str] = {}
        for path, _, names in os.walk(self.folder):
            for name in names:
                self.files.setdefault(_bare(name), os.path.join(path, name))

    def find(self, name: str) -> str | None:
        """Path of an image, or `None`.

        Raises:
            ValueError: a file of that name exists, outside of the folder.
        """
        if os.path.isfile(self.folder / name):
            return os.fspath(path_inside(self.folder, name))
        return self.files.get(_bare(name))


def _bare(name: str) -> str:
    """A name without folders, COCO's prefix and the ending: what all releases of an image share."""
    return re.sub(r"^COCO_\w+?\d{4}_", "", Path(name).stem)
