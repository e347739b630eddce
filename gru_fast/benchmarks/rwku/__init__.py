"""RWKU: famous people to be forgotten, without data to forget or keep (Jin et al. 2024, arXiv 2406.10890).

data.py      where its twelve sets of probes are from
evaluate.py  the evaluation; records.py what a model is asked
"""
