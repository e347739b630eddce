"""LUME, the benchmark of SemEval-2025 task 4: invented stories, invented people's data and real lives to be forgotten.

rows.py      its rows, for training
evaluate.py  its evaluation; records.py what a model is asked
"""

from gru_fast.benchmarks.lume.rows import (
    HUB,
    MAX_LENGTH,
    SPLITS,
    LumeOptions,
    Options,
    default_lengths,
    load,
    retain_of,
    title,
    unlearning,
    unlearning_data,
)

__all__ = [
    "HUB", "MAX_LENGTH", "SPLITS", "LumeOptions", "Options", "default_lengths", "load", "retain_of", "title",
    "unlearning", "unlearning_data",
]  # fmt: skip
