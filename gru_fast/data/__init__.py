"""Rows: from benchmarks and files to tokens, pairs and batches.

People's own documents (:mod:`gru_fast.data.own`) are at hand here.
"""

from gru_fast.data.own import Document, Piece, load, pieces

__all__ = ["Document", "Piece", "load", "pieces"]
