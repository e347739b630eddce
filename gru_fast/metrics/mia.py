"""Membership inference: can a model's losses tell text it was trained on from text it has never seen?

Every attack gives each text a score that is HIGH for text the model does not know; :func:`auc` of the scores of the
forget set and of a holdout set is near 1 where the forget set is still known, 1/2 where it cannot be told apart, and
below 1/2 where it looks even less known than text never seen (over-unlearned). That is the unified framework's
convention; MUSE's code reports A = 1 - AUC.

Losses are means over all label tokens. Min-K%, Min-K%++ and the gradient norm leave the last label out, as the unified
framework does (in an answer it is the end-of-sequence token); a text of one token keeps it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gru_fast.metrics.exact import exact_mean
from gru_fast.metrics.scores import TextRecord, attack, but_last, need

Floats = NDArray[np.float64]

MIN_K = 0.4  # share of tokens, as in MUSE and in the unified framework (the papers of Min-K: 0.2)
_SPREAD = ("vocab_means", "vocab_variances")
_LEAST_VARIANCE = 1e-6  # of log p over the vocabulary: a distribution on one token has none


def auc(forget: ArrayLike, holdout: ArrayLike) -> float:
    """P(h > f) + P(h = f) / 2 for a score f of ``forget`` and h of ``holdout``, each drawn at random: the ROC AUC.

    Exact (Mann-Whitney): equal scores count half, whatever the order of rows. So a model that gives all texts one score
    has 1/2; the scores here are exact means (:func:`~gru_fast.metrics.exact.exact_mean`), equal where their terms are.

    Args:
        forget, holdout: scores, one per text, at least one each, no NaN (Inf is ordered as a number).

    Raises:
        ValueError: no scores, or NaN among them.

    >>> auc([0.1, 0.2], [0.2, 0.9])
    0.875
    """
    known, unknown = _scores(forget, "forget"), _scores(holdout, "holdout")
    known = np.sort(known)
    below = np.searchsorted(known, unknown, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(known, unknown, side="right").sum(dtype=np.int64)
    return int(below + not_above) / (2 * len(known) * len(unknown))


def min_k(log_probs: ArrayLike, k: float = MIN_K) -> float:
    """Min-K% score of one text: minus the mean of its lowest int(k * n) of n token log-probabilities, at least one.

    Shi et al. 2024 (arXiv 2310.16789). High for a text the model does not know.

    Args:
        log_probs: (n,) log p of each token given those before, natural logarithm; n at least 1.
        k: share of tokens, above 0 and at most 1.

    >>> min_k([-0.5, -3.0, -1.0, -2.0, -0.1])
    2.5
    """
    if not 0 < k <= 1:
        raise ValueError(f"k: expected a share of tokens above 0 and at most 1, got {k}")
    values = _scores(log_probs, "log_probs")
    count = max(1, int(len(values) * k))
    return -exact_mean(np.partition(values, count - 1)[:count])


def privleak(unlearned: float, retained: float) -> float:
    """100 * (A_unl - A_ret) / A_ret in percent, A = 1 - :func:`auc`; 0 is best.

    Negative: the forget set is still known (under-unlearned). Positive: it looks less known than to the retrained
    model (over-unlearned). MUSE (Shi et al. 2025, arXiv 2407.06460) states it of A = P(s_forget > s_holdout), which is
    near 0 where the forget set is known; the attacks here give 1 - A.

    Args:
        unlearned, retained: :func:`auc` of the same attack on the same texts under both models; 0.5 for ``retained``
            where there is no retrained model.
    """
    if retained >= 1:
        raise ValueError(
            f"retained: expected an AUC below 1, got {retained}: the retrained model tells the sets apart perfectly, "
            "and nothing can be measured relative to it"
        )
    return 100 * ((1 - unlearned) - (1 - retained)) / (1 - retained)


def rel_diff(unlearned: float, retained: float) -> float:
    """100 * (AUC_unl - AUC_ret) / AUC_ret in percent, the unified framework's ``rel_diff``; 0 is best.

    :func:`privleak` is the same of 1 - AUC. Positive: the forget set is still known.
    """
    if retained <= 0:
        raise ValueError(f"retained: expected an AUC above 0, got {retained}: nothing can be measured relative to it")
    return 100 * (unlearned - retained) / retained


# ---- the attacks -----------------------------------------------------------------------------------------------------


@attack("mia_loss", "membership by loss: AUC (1/2: not told from text never seen; 1: known)", "log_probs")
def loss_score(record: TextRecord) -> float:
    """Mean of -log p over the label tokens; Yeom et al. 2018 (arXiv 1709.01604)."""
    return -exact_mean(_scores(need(record, "log_probs"), "log_probs"))


@attack("mia_min_k", "membership by Min-K%: AUC of the 40% least probable tokens' loss", "log_probs")
def min_k_score(record: TextRecord) -> float:
    """:func:`min_k` of the label tokens but the last."""
    return min_k(but_last(need(record, "log_probs")))


@attack(
    "mia_min_k_plus_plus",
    "membership by Min-K%++: the same of log p standardised over the vocabulary",
    "log_probs",
    *_SPREAD,
)
def min_k_plus_plus_score(record: TextRecord) -> float:
    """:func:`min_k` of z_t = (log p(y_t) - mu_t) / sigma_t, Zhang et al. 2025 (arXiv 2404.02936).

    mu_t and sigma_t^2: mean and variance of log p(v | x, y_<t) for v drawn from that distribution; sigma_t^2 is at
    least 1e-6.
    """
    return min_k(standardized(*(but_last(need(record, field)) for field in ("log_probs", *_SPREAD))))


def standardized(log_probs: ArrayLike, means: ArrayLike, variances: ArrayLike) -> Floats:
    """(n,) z_t = (log p_t - mean_t) / sqrt(variance_t), the variance at least 1e-6: of Min-K%++."""
    values, centers, spreads = (np.asarray(each, dtype=np.float64) for each in (log_probs, means, variances))
    return (values - centers) / np.sqrt(np.maximum(spreads, _LEAST_VARIANCE))


@attack("mia_zlib", "membership by loss over the zlib length of the text", "log_probs", "zlib_bytes")
def zlib_score(record: TextRecord) -> float:
    """Mean loss / bytes of the zlib-compressed text, Carlini et al. 2021 (arXiv 2012.07805)."""
    return loss_score(record) / int(need(record, "zlib_bytes"))


@attack("mia_reference", "membership by loss minus that of --reference-model", "log_probs", "reference_loss")
def reference_score(record: TextRecord) -> float:
    """Mean loss - mean loss under a reference model, Carlini et al. 2021 (arXiv 2012.07805)."""
    return loss_score(record) - float(need(record, "reference_loss"))


@attack("mia_gradnorm", "membership by gradient norm; one backward pass a text", "gradient_norm")
def gradient_norm_score(record: TextRecord) -> float:
    """Mean over parameter tensors of the gradient's L2 norm, after Wang et al. 2024 (arXiv 2402.17012).

    Early versions of the unified framework give minus that, under which 1 does not mean known.
    """
    return float(need(record, "gradient_norm"))


def _scores(values: ArrayLike, name: str) -> Floats:
    """(n,) float64, n at least 1, without NaN."""
    found = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(found):
        raise ValueError(f"{name}: expected at least one value, got none")
    if np.isnan(found).any():
        raise ValueError(
            f"{name}: expected numbers, got NaN at {int(np.isnan(found).argmax())}; has the model diverged?"
        )
    return found
