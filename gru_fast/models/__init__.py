"""Models by name, what they can read and what they say of it, and which is which."""

from gru_fast.models.limits import check_vocabulary, limits_of, padding_id, positions_of
from gru_fast.models.load import (
    ModelOptions,
    check_training,
    config_of,
    device_of,
    find,
    load_model,
    load_template,
    load_tokenizer,
)

__all__ = [
    "ModelOptions", "check_training", "check_vocabulary", "config_of", "device_of", "find", "limits_of",
    "load_model", "load_template", "load_tokenizer", "padding_id", "positions_of",
]  # fmt: skip
