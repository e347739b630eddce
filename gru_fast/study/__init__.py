"""A paper's worth of runs from one recipe: every method plain and with GRU, several seeds, tables, figures, a page.

recipe.py      what is studied: the keys of the YAML file
load.py        finds and reads it
arguments.py   options of the commands, and what these would refuse
plan.py        recipe -> jobs, each a list of gru-fast commands, and what each run is for
task.py        does one job
toy.py         a small model and its rows
collect.py     the folders of the jobs -> results
results.py     READ FIRST: all that has come of a study, as results.json has it; what follows reads nothing else
statistics.py  what GRU has changed: pairs, means over seeds, bootstrap intervals; verdict.py says it in words
render.py      a table as Markdown, LaTeX, CSV
tables.py      tables in the shape of the paper's; overview.py: statistics, every pair, every run
paths.py       runs along their way: why one removes less than another at the end
paper.py       the paper's own values, from paper.json
figures.py     figures, PNG and SVG; curves.py: those over time
page.py        report.html, one file without a network, from templates/
report.py      writes all of these
"""
