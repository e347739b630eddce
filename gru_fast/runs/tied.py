"""Becomes another program, which gets SIGTERM when the process that started it has ended, however it ended.

    python tied.py PARENT PROGRAM [ARGUMENT ...]

Run as a file, so that nothing of the package is imported. Linux alone has what it takes; elsewhere a program outlives
a parent that was killed.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, line: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it could be followed
        sys.exit(128 + signal.SIGTERM)
    try:
        os.execvp(line[0], line)
    except OSError as error:
        sys.exit(f"launch: cannot start {line[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
