"""What libraries log, kept off stdout, which is for what a command says: `--json > FILE` must be JSON."""

from __future__ import annotations

import logging
import sys


def keep_off_stdout() -> None:
    """DeepSpeed's log goes to stderr, without what it says of accelerators.

    Its handler writes to stdout. transformers, accelerate and peft import it wherever it is installed, whether it is
    used or not, and then it tells that it has found no GPU (DeepSpeed 0.19.8).
    """
    logger = logging.getLogger("DeepSpeed")  # the one that DeepSpeed will find there
    if not any(isinstance(each, _ToStderr) for each in logger.filters):
        logger.addFilter(_ToStderr())


class _ToStderr(logging.Filter):
    """Looked at before a record's handlers are."""

    def filter(self, record: logging.LogRecord) -> bool:
        for handler in logging.getLogger(record.name).handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setStream(sys.stderr)
        return record.levelno >= logging.ERROR or record.filename != "real_accelerator.py"
