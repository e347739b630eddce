"""Models by name, what they say of sequences, and which is which."""

from gru_fast.models.load import (
    ModelOptions,
    check_vocabulary,
    config_of,
    device_of,
    find,
    load_model,
    load_template,
    load_tokenizer,
)

__all__ = [
    "ModelOptions", "check_vocabulary", "config_of", "device_of", "find", "load_model", "load_template",
    "load_tokenizer",
]  # fmt: skip
