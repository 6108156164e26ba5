"""Messages of other libraries that a user can do nothing about, and that are harmless in Poise."""

import logging

# logger -> beginnings (after an optional name in backquotes) that are dropped. Each was looked into: the first two say
# that an optional faster kernel is not installed, the next is said by the run itself, in one line, with what it means;
# the last that a cast which we rely on takes place.
HARMLESS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "transformers.utils.import_utils": "requires torchvision (not installed); falling back to",
    "transformers.trainer_utils": "The following arguments do not match the ones in the `trainer_state.json`",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}


class HarmlessMessage(logging.Filter):
    """Drops the records whose message holds `text`, lets every other record of the same logger through."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()


def quiet_libraries() -> None:
    """Filters the known harmless messages, by logger name: no library is imported for it. Calling twice is fine."""
    for name, text in HARMLESS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, HarmlessMessage) for known in logger.filters):
            logger.addFilter(HarmlessMessage(text))
