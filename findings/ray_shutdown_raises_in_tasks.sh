#!/usr/bin/env bash
# Ray 2.60.0: when the driver leaves (ray.shutdown), a task that is still running gets SystemExit raised in its own code.
#
# Guess: the worker process of a running task is killed, or ends by SIGTERM; the task's code never hears of it.
# Seen:  Ray's worker has a Python handler for SIGTERM that raises SystemExit in the main thread, where the task runs. So
#        `except SystemExit` and `finally` of the task run, and a task that writes down how it ended notes a failure
#        although it was only asked to stop.
#
# What it means here: gru_fast/jobs/doing.py puts SIGTERM back to its default in a worker, so that a run that was stopped
# has no record and goes on next time.
#
# Needs a package index and some 300 MB in a temporary folder. Exit status 0: as described; 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
export RAY_USAGE_STATS_ENABLED=0 HOME=$work
cat >"$work/driver.py" <<'PROGRAM'
import pathlib
import sys
import time

import ray

note = pathlib.Path(sys.argv[1])


@ray.remote
def task(path):
    pathlib.Path(path).write_text("running")
    try:
        time.sleep(60)
    except BaseException as error:
        pathlib.Path(path).write_text(f"raised {type(error).__name__}")
        raise


ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
task.remote(str(note))
while not note.exists():
    time.sleep(0.1)
time.sleep(1)
ray.shutdown()
time.sleep(3)
PROGRAM
"$work/venv/bin/python" "$work/driver.py" "$work/note" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
seen=$(cat "$work/note")
echo "ray $("$work/venv/bin/python" -c 'import ray; print(ray.__version__)'): the task that was running at ray.shutdown: $seen"
[[ $seen == "raised SystemExit" ]]
