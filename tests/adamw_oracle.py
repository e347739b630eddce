"""AdamW with its gradient and its update rectified, in float64 NumPy, straight from the formulas: shares no code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass
class Oracle:
    """All parameters as one vector; ``lr`` and ``decay`` may be vectors (parameter groups)."""

    theta: Vector
    lr: Any = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: Any = 0.0
    gamma: float = 1.0
    tau: float = np.inf
    gradient: bool = True
    update: bool = False
    adam: bool = False
    feed_back: bool = False
    t: int = 0
    floor: float | None = None
    e: Vector = field(init=False)
    m: Vector = field(init=False)
    v: Vector = field(init=False)

    def __post_init__(self) -> None:
        self.e, self.m, self.v = (np.zeros_like(self.theta) for _ in range(3))
        self.lr = np.broadcast_to(self.lr, self.theta.shape)

    def step(self, g: Vector, r: Vector | None) -> float:
        """Returns q = sum lr U e before U was rectified."""
        if r is not None:
            self.e = (1 - self.gamma) * self.e + self.gamma * r
        e, (b1, b2) = self.e, self.betas
        if self.gradient and g @ e < 0 and e @ e > 0:
            g = g - (g @ e) / (e @ e) * e
        norm = np.linalg.norm(g)
        if norm > self.tau:
            g = g * self.tau / norm
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        bias1, bias2 = 1 - b1**self.t, 1 - b2**self.t
        d = np.sqrt(self.v / bias2) + self.eps
        u = self.m / bias1 / d + self.decay * self.theta
        rms = float(np.sqrt((d * d).mean()))
        w = np.ones_like(d)
        if self.adam:
            w = d + (rms if self.floor is None else self.floor)
        self.floor = rms
        q = float((self.lr * u) @ e)
        if self.update and q < 0:
            factor = -q / float((self.lr * e / w) @ e)
            u = u + factor * e / w
            if self.feed_back:
                self.m = self.m + bias1 * factor * d * e / w
        self.theta = self.theta - self.lr * u
        return q
