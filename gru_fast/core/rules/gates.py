"""Rules that decide element by element: SAGO."""

from __future__ import annotations

from dataclasses import dataclass

from gru_fast.core.rules.base import Rule, option


@dataclass(frozen=True)
class SAGO(Rule):
    """Sign-aware gradient overwriting (arXiv 2604.14808): where the signs differ, the retain gradient's element.

    ``w_r r_i`` where ``g_i r_i < 0``, else ``w_f g_i``; in the form "prefer_retain" else ``w_f g_i + w_r r_i``.
    Promise: ``g_i r_i >= 0`` for every element afterwards, so that ``<P ., r> >= 0`` for every positive diagonal P: of
    all rules on gradients it alone keeps its promise under Adam's preconditioner (not under momentum or decay).

    Nothing is decided over the whole, so it is one pass: without an average (:class:`gru_fast.RetainGradient`) a step
    reads g and r and writes g, 12 bytes a parameter in float32, 6 in 16 bits. What is NaN or Inf in g or r is not
    finite in g then, and the step says so (with ``error_if_nonfinite``, a loss scale or an average a pass looks first,
    and g is left untouched). tau takes a second pass where it clips. The public code (sustech-nlp/SAGO) works in lists
    of temporaries, with both forward graphs held at once.
    """

    name = "sago"
    title = "SAGO"
    elementwise = True

    form: str = option(
        "sago", "sago: r where signs differ alone; prefer_retain: r everywhere", choices=("sago", "prefer_retain")
    )
    w_f: float = option(1.0, "weight of the unlearning gradient", at_least=0.0)
    w_r: float = option(1.0, "weight of the retain gradient (0.5 in its recipe for WMDP bio)", at_least=0.0)
