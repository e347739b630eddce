"""Who does the passes on which device: the compiled kernels, or plain PyTorch.

passes.py     what every backend offers, and what it is given
native.py     the compiled passes (csrc)
reference.py  the same in plain PyTorch; reference_vectors.py those of task vectors
adamw.py      what the passes of AdamW are given; reference_adamw.py those in plain PyTorch
choice.py     which of them serves a device
parts.py      one step over several devices and processes
library.py    the step as torch.library ops
"""

from gru_fast.core.backends.choice import backend_name, mend_cuda, passes_for, warn_of_fallback

__all__ = ["backend_name", "mend_cuda", "passes_for", "warn_of_fallback"]
