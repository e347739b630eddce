"""MUSE: books and news to be forgotten (Shi et al. 2024).

rows.py      its texts, for training
evaluate.py  its evaluation; records.py what a model is asked, extra.py the optional metrics
"""

from gru_fast.benchmarks.muse.rows import (
    CORPORA,
    HUB,
    MAX_LENGTH,
    RETAIN,
    SPLITS,
    TEXT,
    MuseOptions,
    Options,
    chunks,
    corpus_of,
    default_lengths,
    load,
    load_text,
    retain_of,
    title,
    unlearning,
    unlearning_data,
)

__all__ = [
    "CORPORA", "HUB", "MAX_LENGTH", "RETAIN", "SPLITS", "TEXT", "MuseOptions", "Options", "chunks", "corpus_of",
    "default_lengths", "load", "load_text", "retain_of", "title", "unlearning", "unlearning_data",
]  # fmt: skip
