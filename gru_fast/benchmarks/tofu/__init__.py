"""TOFU: questions about 200 fictitious authors, some to be forgotten (Maini et al. 2024).

rows.py      its rows, for training
evaluate.py  its evaluation; records.py what a model is asked, summary.py the numbers, extra.py the optional metrics
"""

from gru_fast.benchmarks.tofu.rows import (
    HUB,
    MAX_ROWS,
    RETAIN_SETS,
    SPLITS,
    SUBSETS,
    IdkRows,
    Options,
    TofuOptions,
    default_lengths,
    eval_sets,
    finetuning_data,
    idk_answers,
    load,
    load_eval_sets,
    retain_of,
    split_problem,
    title,
    unlearning,
    unlearning_data,
    wordings,
)

__all__ = [
    "HUB", "MAX_ROWS", "RETAIN_SETS", "SPLITS", "SUBSETS", "IdkRows", "Options", "TofuOptions", "default_lengths",
    "eval_sets", "finetuning_data", "idk_answers", "load", "load_eval_sets", "retain_of", "split_problem", "title",
    "unlearning", "unlearning_data", "wordings",
]  # fmt: skip
