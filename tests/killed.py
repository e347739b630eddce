"""`gru-fast`, started by torchrun, whose second process is killed when it would keep a third batch."""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from typing import Any

from gru_fast.cli import main
from gru_fast.evaluation.record_folder import RecordFolder

_calls = count(1)
_append = RecordFolder.append


def _killed(folder: RecordFolder, *args: Any) -> None:
    if folder.rank == 1 and next(_calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    _append(folder, *args)


if __name__ == "__main__":
    RecordFolder.append = _killed  # type: ignore[method-assign]
    sys.exit(main())
