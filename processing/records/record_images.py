"""Where the images of records lie: in the folder that their paths must not leave, below one that is searched for the
names that annotations give, or stored beside a new file."""

import hashlib
import os
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}  # of images that are stored as they came


def path_inside(folder: str | os.PathLike, image: str) -> Path | str:
    """The path of a record's image, which must not leave its folder: records may come from strangers.

    Links in the folder are followed, for whoever made them allowed it. An address stays one; opening it says so.

    Raises:
        ValueError: the path leads out of the folder.
    """
    if "://" in image:
        return image
    path = Path(folder) / image
    if not is_inside(path, folder):
        raise ValueError(
            f"{image!r} lies outside of {os.fspath(folder)!r}: set image_folder to a folder that holds all images, or "
            "move it there."
        )
    return path


def is_inside(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a path, `..` resolved but no links, is in a folder."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


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


class StoredImages:
    """The images of a file of records that is being written, so that all of their paths stay inside its folder.

    PIL images become files in a folder of their own: PNG, or byte for byte where they were not decoded yet. Image files
    stay where they are; to the folder of one that lies elsewhere that folder gets a link. Nothing is in place before
    `finish` is called, and `clear` removes what is not.

    Args:
        folder (`Path`): such as `train_images` beside `train.jsonl`.
    """

    def __init__(self, folder: Path):
        self.folder, self.unfinished = folder, folder.with_name(folder.name + ".unfinished")
        self.names: set[str] = set()  # without case: some file systems do not tell `A.png` from `a.png`
        self.links: dict[str, str] = {}  # folder elsewhere → name of the link to it

    def store(self, image: Image.Image | str, record_id: str) -> str:
        """The path to write into the record: relative to the file's folder, and inside of it."""
        if isinstance(image, Image.Image):
            return os.path.join(self.folder.name, self._file(image, record_id))
        if is_inside(image, self.folder.parent):
            return os.path.relpath(image, self.folder.parent)
        elsewhere = os.path.dirname(os.path.abspath(image))
        if elsewhere not in self.links:
            self.links[elsewhere] = self._link(elsewhere)
        return os.path.join(self.folder.name, self.links[elsewhere], os.path.basename(image))

    def finish(self) -> None:
        """Move everything into place, over files and links of the same names."""
        if self.unfinished.is_dir():
            self.folder.mkdir(exist_ok=True)
            for made in self.unfinished.iterdir():
                os.replace(made, self.folder / made.name)

    def clear(self) -> None:
        """Remove what is not in place."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _name(self, wanted: str, unique: str) -> str:
        """`a/b` and `a?b` are one file name, but two images; and a real folder is not written over."""
        name = re.sub(r"[^\w.-]", "_", wanted)[:100]
        taken = (self.folder / name).is_dir() and not (self.folder / name).is_symlink()
        if taken or name.lower() in self.names or name.strip(".") == "":
            name += "_" + hashlib.sha256(unique.encode()).hexdigest()[:12]
        self.names.add(name.lower())
        self.unfinished.mkdir(exist_ok=True)
        return name

    def _link(self, elsewhere: str) -> str:
        name = self._name(os.path.basename(elsewhere), elsewhere)
        # A link's target is read from where the link really is.
        target = os.path.relpath(os.path.realpath(elsewhere), os.path.realpath(self.unfinished))
        try:
            os.symlink(target, self.unfinished / name, target_is_directory=True)
        except OSError as error:
            raise OSError(
                f"{os.fspath(self.folder / name)!r} cannot become a link to {elsewhere!r} ({error.strerror}): write "
                "the records into a folder above their images."
            ) from None
        return name

    def _file(self, image: Image.Image, record_id: str) -> str:
        name = self._name(record_id, record_id)
        encoded = getattr(image, "fp", None)  # an image that was never decoded is stored as it came
        if isinstance(encoded, BytesIO) and image.format in _ENDINGS:
            file = self.unfinished / (name + _ENDINGS[image.format])
            file.write_bytes(encoded.getvalue())
        else:
            file = self.unfinished / (name + ".png")
            image.save(file)
        return file.name
