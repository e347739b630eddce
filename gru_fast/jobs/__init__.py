"""Many runs: jobs that processes share, on one machine or on several, through a storage of Optuna.

storage.py   opens a storage: SQLite, any database that Optuna takes, a journal file for a shared folder
queue.py     a queue in it: each job is claimed once, a dead worker's job is taken over, the outcome stays
liveness.py  who works on a job, and whether it is still alive
worker.py    one process that claims jobs and does them, each with a log of its own
pool.py      several such processes
command.py   what jobs mostly are: commands of gru-fast
progress.py  what is said meanwhile, and which jobs have failed
"""
