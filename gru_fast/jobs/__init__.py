"""Many runs: jobs that a driver submits to Ray, on this machine or on a cluster.

driver.py    submits what is not done, waits, starts Ray and ends it
doing.py     one job in a worker process: its log, its outcome, its record
command.py   what jobs mostly are: commands of gru-fast

A job is an ordinary command with an ordinary run folder; it is done when its record (gru_fast/runs/records.py) is
whole. So the state of a study or sweep is in its folder; scheduling, retries, GPUs and machines that die are Ray's.
"""
