"""Rows: from benchmarks and files to tokens, pairs and batches."""
