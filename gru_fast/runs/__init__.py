"""What a run leaves behind, and what starts it.

folder.py      run folders: options, environment, result, log, evaluations
checkpoint.py  checkpoints of a run: which are whole, whether they fit
files.py       files that are there as a whole or not at all
processes.py   the processes that a launcher has started
progress.py    bars; messages.py: what errors say; memory.py: the largest size of this process
"""

from gru_fast.runs.checkpoint import last_checkpoint
from gru_fast.runs.files import read_json, write_json, write_text
from gru_fast.runs.folder import (
    CONFIG,
    ENVIRONMENT,
    RESULT,
    STATE,
    Run,
    check_folder,
    clear,
    delete_weights,
    environment,
    is_run,
    now,
    read_config,
    read_run,
    save_model,
    start,
    train,
    trained,
    what_counts,
)

__all__ = [
    "CONFIG", "ENVIRONMENT", "RESULT", "STATE", "Run", "check_folder", "clear", "delete_weights", "environment",
    "is_run", "last_checkpoint", "now", "read_config", "read_json", "read_run", "save_model", "start", "train",
    "trained", "what_counts", "write_json", "write_text",
]  # fmt: skip
