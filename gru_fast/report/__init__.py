"""Tables and figures of runs, read from their folders; no model is loaded.

collect.py   run folders -> one entry for each evaluation of each run
table.py     entries -> a table as text, Markdown or CSV
figures.py   entries -> figures, PNG and SVG
"""
