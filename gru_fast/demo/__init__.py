"""`gru-fast demo`: all of unlearning at toy size, from made-up data to figures, without network and GPU.

fiction.py    a benchmark of fictitious authors in TOFU's layout
knowledge.py  real authors and world facts that the models are taught beside it
model.py      a tokenizer of that text and a tiny Llama, untrained
settings.py   what is trained and how long, and why so
stages.py     the runs: fine-tuning, unlearning, evaluation; each leaves an ordinary run folder
words.py      what the demo says
show.py       the demo from beginning to end
"""
