"""One step of Gradient Rectified Unlearning, and nothing else.

rectify.py  the map of a step: parameters -> tensors of this step -> rule -> result
ema.py      e, the moving average of retain gradients: what outlives a step
retain_gradient.py  r itself, where a rule takes it and no average is kept
step.py     a step in progress: what was collected or streamed
rules/      from sums to coefficients
granularity.py  groups of parameters that a rule decides for by themselves
optim.py    AdamW with the rectification inside (adamw_options.py, adamw_step.py, update.py: its parts)
update_monitor.py  the same sums for torch's AdamW
result.py   what happened, read when somebody looks
vectors.py  the same passes for task vectors
backends/   who does the passes on which device
sharded/    parameters spread over processes
"""
