"""The entry point `lmms_eval.models`: lmms-eval finds Poise by it, once both are installed.

lmms_eval --model poise --model_args pretrained=user/name,tagger=user/tagger --tasks pope,ok_vqa_val2014
"""

from typing import Any

MODEL_ID = "poise"


def manifest() -> Any:
    """What lmms-eval registers. The class is imported only when somebody asks for the model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, chat_class_path="poise.lmms_eval_model.PoiseForLmmsEval")
