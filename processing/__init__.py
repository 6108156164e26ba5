"""What goes into the model: processor, tags, task records, collators, scenes.

Names are fetched from their files when they are first used, so that reading a box or a tag does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batching.batch_description import describe_batch
    from .batching.collators import GenerationCollator, TrainingCollator
    from .chat_templates import CHAT_TEMPLATES, choose_chat_template
    from .grounding_text import box_to_text, text_to_box
    from .image_loading import open_image
    from .processing_poise import PoiseProcessor
    from .prompts import Prompts, reference_texts, target_text
    from .records.photo_annotations import convert_photo_annotations
    from .records.tagged_records import PrecomputedTags, TaggedRecords, load_tagger
    from .records.task_record import TaskRecord, TaskRecordError, check_task_record
    from .records.task_record_files import TaskRecords, load_task_records, write_task_records
    from .scenes.scenes import Scenes
    from .taggers import DualEncoderTagger, ZeroShotTagger
    from .tags import Tag, check_tags, parse_tags

_HOME = {
    "CHAT_TEMPLATES": "chat_templates",
    "DualEncoderTagger": "taggers",
    "GenerationCollator": "batching.collators",
    "PoiseProcessor": "processing_poise",
    "PrecomputedTags": "records.tagged_records",
    "Prompts": "prompts",
    "Scenes": "scenes.scenes",
    "Tag": "tags",
    "TaggedRecords": "records.tagged_records",
    "TaskRecord": "records.task_record",
    "TaskRecordError": "records.task_record",
    "TaskRecords": "records.task_record_files",
    "TrainingCollator": "batching.collators",
    "ZeroShotTagger": "taggers",
    "box_to_text": "grounding_text",
    "check_tags": "tags",
    "check_task_record": "records.task_record",
    "choose_chat_template": "chat_templates",
    "convert_photo_annotations": "records.photo_annotations",
    "describe_batch": "batching.batch_description",
    "load_tagger": "records.tagged_records",
    "load_task_records": "records.task_record_files",
    "open_image": "image_loading",
    "parse_tags": "tags",
    "reference_texts": "prompts",
    "target_text": "prompts",
    "text_to_box": "grounding_text",
    "write_task_records": "records.task_record_files",
}
__all__ = [
    "CHAT_TEMPLATES",
    "DualEncoderTagger",
    "GenerationCollator",
    "PoiseProcessor",
    "PrecomputedTags",
    "Prompts",
    "Scenes",
    "Tag",
    "TaggedRecords",
    "TaskRecord",
    "TaskRecordError",
    "TaskRecords",
    "TrainingCollator",
    "ZeroShotTagger",
    "box_to_text",
    "check_tags",
    "check_task_record",
    "choose_chat_template",
    "convert_photo_annotations",
    "describe_batch",
    "load_tagger",
    "load_task_records",
    "open_image",
    "parse_tags",
    "reference_texts",
    "target_text",
    "text_to_box",
    "write_task_records",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
