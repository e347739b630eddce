"""Metrics: per-example records in, numbers out. Nothing in here sees a model; a benchmark's metrics are one file."""
