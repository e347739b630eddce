"""The grids of the paper: unlearning runs over gamma and tau, shared by processes and machines, and what is best.

options.py   what can be chosen
plan.py      options -> the studies' settings, the files that runs start from, the jobs
trial.py     one job: an unlearning run and its evaluation, or the evaluation of the original model
prune.py     gives up a run whose utility is out of reach
results.py   the queue's jobs -> cells, the best one under a constraint, tables
figures.py   heat maps
"""
