"""Saving and loading a processor whose tag tokenizer and tagger lie in folders of their own, or are not there.

ProcessorMixin saves and loads every tokenizer it knows of, but cannot bear that one is None.
"""

import copy
import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer
from transformers.processing_utils import ProcessorMixin

TAG_TOKENIZER_FOLDER = "tag_tokenizer"
TAGGER_FOLDER = "tagger"


class SavedWithTagParts(ProcessorMixin):
    """Base class of a processor with `tag_tokenizer` and `tagger`, each of which may be `None`."""

    tag_tokenizer: Any
    tagger: Any
    unsaved: tuple[str, ...] = ("tag_tokenizer", "tagger")  # attributes that `processor_config.json` does not hold

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that ProcessorMixin saves and loads; tag tokenizer and tagger are saved and loaded below."""
        return ["image_processor", "tokenizer"]

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds."""
        bare = copy.copy(self)
        for name in self.unsaved:
            delattr(bare, name)
        output = super(SavedWithTagParts, bare).to_dict()
        output["tag_tokenizer_folder"] = None if self.tag_tokenizer is None else TAG_TOKENIZER_FOLDER
        output["tagger_folder"] = None if self.tagger is None else TAGGER_FOLDER
        return output

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Saves everything that `from_pretrained` needs; the tag tokenizer goes into a folder of its own."""
        files = super().save_pretrained(save_directory)
        if self.tag_tokenizer is not None:
            self.tag_tokenizer.save_pretrained(os.path.join(save_directory, TAG_TOKENIZER_FOLDER))
        if self.tagger is not None:
            self.tagger.save_pretrained(os.path.join(save_directory, TAGGER_FOLDER))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return files

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        arguments = super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        return [*arguments, cls._saved_tag_tokenizer(pretrained_model_name_or_path, processor_dict or {}, **kwargs)]

    @classmethod
    def _saved_tag_tokenizer(cls, name, processor_dict, subfolder="", **kwargs):
        folder = processor_dict.get("tag_tokenizer_folder")
        if folder is None:
            return None
        return AutoTokenizer.from_pretrained(name, subfolder=os.path.join(subfolder, folder), **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As every processor; a tagger that was saved with it comes along, whose code is trusted as this one's is."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        settings, _ = cls.get_processor_dict(pretrained_model_name_or_path, **dict(kwargs))
        folder = settings.get("tagger_folder")
        if folder is not None:
            code = {} if __package__ == "poise.processing" else {"trust_remote_code": True}
            processor.tagger = _saved_tagger(pretrained_model_name_or_path, folder, code, **kwargs)
        return processor


def _saved_tagger(name: str, folder: str, code: dict[str, bool], subfolder: str = "", **kwargs: Any) -> Any:
    from .taggers import DualEncoderTagger

    if not os.path.isdir(name):
        known = ("revision", "cache_dir", "token", "local_files_only")
        hub = {option: kwargs[option] for option in known if option in kwargs}
        name = snapshot_download(name, allow_patterns=f"{os.path.join(subfolder, folder)}/*", **hub)
    return DualEncoderTagger.from_pretrained(os.path.join(name, subfolder, folder), **code)
