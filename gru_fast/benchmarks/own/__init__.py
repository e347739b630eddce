"""People's own documents as a benchmark: what to forget, what to keep, and what no model has seen.

rows.py      which documents they are, and the rows to train on
evaluate.py  their evaluation; records.py what is asked of a model
"""

from gru_fast.benchmarks.own.rows import (
    MAX_LENGTH,
    SPLITS,
    Options,
    OwnOptions,
    OwnSources,
    config_of_run,
    default_lengths,
    retain_of,
    title,
    unlearning,
    unlearning_data,
)

__all__ = [
    "MAX_LENGTH", "SPLITS", "Options", "OwnOptions", "OwnSources", "config_of_run", "default_lengths",
    "retain_of", "title", "unlearning", "unlearning_data",
]  # fmt: skip
