"""Deprecated, for one version: templates are in :mod:`gru_fast.data.templates`."""

import warnings

from gru_fast.data.templates import (
    TEMPLATES,
    Template,
    encode,
    encode_prompt,
    encode_rows,
    ensure_pad_token,
    resolve_template,
)

__all__ = ["TEMPLATES", "Template", "encode", "encode_prompt", "encode_rows", "ensure_pad_token", "resolve_template"]

warnings.warn(
    "gru_fast.benchmarks.templates: import from gru_fast.data.templates, where it is now",
    DeprecationWarning,
    stacklevel=2,
)
