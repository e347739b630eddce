"""WMDP: hazardous knowledge to be forgotten (Li et al. 2024).

rows.py      its corpora, for training
evaluate.py  its evaluation through lm-eval; questions.py its tasks, model.py a model that processes share
"""

from gru_fast.benchmarks.wmdp.rows import (
    BIO_FORGET,
    HUB,
    MAX_LENGTH,
    RETAINS,
    SPLITS,
    TOPICS,
    WIKITEXT,
    WIKITEXT_MAX_LENGTH,
    Options,
    WmdpOptions,
    default_lengths,
    encode,
    load,
    retain_of,
    title,
    topics_of,
    unlearning,
    unlearning_data,
)

__all__ = [
    "BIO_FORGET", "HUB", "MAX_LENGTH", "RETAINS", "SPLITS", "TOPICS", "WIKITEXT", "WIKITEXT_MAX_LENGTH", "Options",
    "WmdpOptions", "default_lengths", "encode", "load", "retain_of", "title", "topics_of", "unlearning",
    "unlearning_data",
]  # fmt: skip
