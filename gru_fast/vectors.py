"""Vectors in the space of a model's parameters, for task vectors: see :mod:`gru_fast.core.vectors`."""

from gru_fast.core.vectors import TaskVectorStep, accumulate_task_vector_, interpolate_, subtract_

__all__ = ["TaskVectorStep", "accumulate_task_vector_", "interpolate_", "subtract_"]
