"""TOFU: Probability, ROUGE, Truth Ratio, Model Utility and Forget Quality, from per-example records.

Notation: l is the loss of the answer, lp of its paraphrase, lw_j of the j-th wrong answer, all per label token. All
ratios are taken in log space, as the original code does for Forget Quality; the unified framework adds 1e-10 to
probabilities instead, which makes the ratios of a collapsed model (losses above 23 per token) equal one another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gru_fast.metrics import quick
from gru_fast.metrics.exact import exact_mean
from gru_fast.metrics.records import Record, Records, rows_of

Floats = NDArray[np.float64]

TRUTH_RATIOS = ("geometric", "arithmetic")
_UTILITY_SETS = {"retain": "retain", "real_authors": "ra", "world_facts": "wf"}  # set -> prefix of its components


def probability(records: Sequence[Record], *, of_choices: bool = False, where: str = "records") -> float:
    """Mean exp(-l); with ``of_choices`` (real authors, world facts) mean exp(-l) / (exp(-l) + sum_j exp(-lw_j))."""
    return float(_probabilities(records, of_choices, where).mean())


def _probabilities(records: Sequence[Record], of_choices: bool, where: str) -> Floats:
    answer = _column(records, "answer_loss", where)
    if not of_choices:
        return np.exp(-answer)
    choices = np.column_stack([answer, _perturbed(records, where)])
    return np.exp(-answer - _log_mean_exp(-choices)) / choices.shape[1]


def rouge(records: Sequence[Record], *, where: str = "records") -> float:
    """Mean ROUGE-L recall of the generations against the answers."""
    return float(_column(records, "rougeL_recall", where).mean())


def log_truth_ratios(records: Sequence[Record], kind: str = "geometric", *, where: str = "records") -> Floats:
    """log R per row, R = (probability of the wrong answers) / (probability of the paraphrase).

    geometric: R = exp(lp - mean_j lw_j), the paper's and the published tables'. arithmetic: R = mean_j exp(-lw_j) /
    exp(-lp), one file of the original code; its Model Utility is 0.02 to 0.04 lower. Returns (rows,) float64.
    """
    if kind not in TRUTH_RATIOS:
        raise ValueError(f'truth_ratio: expected one of {", ".join(TRUTH_RATIOS)}, got "{kind}"')
    paraphrase, wrong = _column(records, "paraphrase_loss", where), _perturbed(records, where)
    if kind == "geometric":
        return paraphrase - np.asarray([exact_mean(row) for row in wrong])
    return paraphrase + _log_mean_exp(-wrong)


def truth_ratio(records: Sequence[Record], kind: str = "geometric", *, where: str = "records") -> float:
    """Mean max(0, 1 - R): 1 where the model prefers the truth. For the sets of Model Utility."""
    return float(_truths(records, kind, where).mean())


def _truths(records: Sequence[Record], kind: str, where: str) -> Floats:
    return np.abs(np.expm1(np.minimum(log_truth_ratios(records, kind, where=where), 0.0)))


def truth_ratio_min(records: Sequence[Record], kind: str = "geometric", *, where: str = "records") -> float:
    """Mean min(R, 1/R): 1 where the model prefers neither. For the forget set; not what Forget Quality compares."""
    return float(np.exp(-np.abs(log_truth_ratios(records, kind, where=where))).mean())


def truth_ratio_prob_mean(records: Sequence[Record], kind: str = "geometric", *, where: str = "records") -> float:
    """Mean 1 / (1 + R) = p / (p + p_wrong), 0 to 1: how far the model believes the truth (1/2: as a wrong answer).

    The unified framework's later truth ratio (``prob_mean``; Dorna et al. 2025, arXiv 2506.12618), of the forget set.
    """
    log_ratios = log_truth_ratios(records, kind, where=where)
    # The form whose exponential cannot overflow, on either side of 0.
    small = np.exp(-np.abs(log_ratios))
    return float(np.where(log_ratios > 0, small / (1 + small), 1 / (1 + small)).mean())


def components(records: Records, kind: str = "geometric") -> dict[str, float]:
    """The nine numbers of Model Utility: {retain, ra, wf}_{prob, rougeL_recall, truth_ratio}, each 0 to 1."""
    found: dict[str, float] = {}
    for name, prefix in _UTILITY_SETS.items():
        rows = rows_of(records, name, "Model Utility")
        found[f"{prefix}_prob"] = probability(rows, of_choices=name != "retain", where=name)
        found[f"{prefix}_rougeL_recall"] = rouge(rows, where=name)
        found[f"{prefix}_truth_ratio"] = truth_ratio(rows, kind, where=name)
    return found


def model_utility(records: Records, kind: str = "geometric") -> float:
    """Harmonic mean of the nine :func:`components`; 0 if any of them is. Higher is better."""
    return harmonic_mean(components(records, kind).values())


def utility_interval(
    records: Records, kind: str = "geometric", *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap's interval of :func:`model_utility`: the rows of each set are drawn anew, as many as
    there are, and a row counts with all three of its numbers. The same for the same records and seed.
    """
    sets = {}
    for name in _UTILITY_SETS:
        rows = rows_of(records, name, "Model Utility")
        parts = (
            _probabilities(rows, name != "retain", name),
            _column(rows, "rougeL_recall", name),
            _truths(rows, kind, name),
        )
        sets[name] = np.stack(parts, axis=1)

    def utility(drawn: Mapping[str, Floats]) -> dict[str, float]:
        return {"MU": harmonic_mean(np.concatenate([rows.mean(axis=0) for rows in drawn.values()]).tolist())}

    low, high = quick.intervals(sets, utility, level=level, resamples=resamples, seed=seed)["MU"]
    return low, high


def harmonic_mean(values: Iterable[float]) -> float:
    """n / sum(1 / x) of numbers >= 0; 0 if any is 0."""
    numbers = list(values)
    return len(numbers) / math.fsum(1.0 / x for x in numbers) if min(numbers) > 0 else 0.0


def forget_scores(records: Records, kind: str = "geometric") -> dict[str, float]:
    """Probability, ROUGE-L recall, mean min(R, 1/R) and mean 1 / (1 + R) of the forget set."""
    rows = rows_of(records, "forget", "the forget scores")
    return {
        "prob": probability(rows, where="forget"),
        "rougeL_recall": rouge(rows, where="forget"),
        "truth_ratio_min": truth_ratio_min(rows, kind, where="forget"),
        "truth_ratio_prob_mean": truth_ratio_prob_mean(rows, kind, where="forget"),
    }


@dataclass(frozen=True)
class ForgetQuality:
    """p-value of the Kolmogorov-Smirnov test between two models' truth ratios: 1 is "as if never trained on it".

    Args:
        p: the p-value, 0 to 1.
        log_p: its natural logarithm, the paper's convention; exact also where p is below the smallest float.
        statistic: largest distance of the two distributions, 0 to 1.
        n: rows of each model.
    """

    p: float
    log_p: float
    statistic: float
    n: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def forget_quality(
    unlearned: Records, retained: Records, kind: str = "geometric", *, matching_rows: bool = False
) -> ForgetQuality:
    """p of the two-sample, two-sided, exact KS test (scipy's ``ks_2samp``, to rounding) between the forget set's truth
    ratios R of the unlearned model and of a model retrained without that set.

    The test is the same for R, 1/R and log R, which is what goes in; not for min(R, 1/R).

    Args:
        matching_rows: compare only the rows whose questions are in both (e.g. logs that were cut at 300 rows).

    Raises:
        ValueError: the two forget sets hold different questions; the message counts those that match. Where a log holds
            no questions, its row numbers must match.
    """
    ours, theirs = match_rows(
        rows_of(unlearned, "forget", "Forget Quality"),
        rows_of(retained, "forget", "Forget Quality", "retained model: "),
        matching_rows,
    )
    a, b = (log_truth_ratios(rows, kind, where=where) for rows, where in ((ours, "forget"), (theirs, "retained")))
    n, points = len(ours), np.concatenate([a, b])
    ranks = (np.searchsorted(np.sort(values), points, side="right") for values in (a, b))
    k = int(np.abs(np.subtract(*ranks)).max())
    # Not scipy's p: it falls back to an approximation, with a warning, where p leaves the floats, or is 1 to rounding
    # (findings/scipy_exact_ks_gives_up_on_equal_samples.sh).
    log_p = _log_ks_p(k, n)
    return ForgetQuality(math.exp(log_p), log_p, k / n, n)


def _log_ks_p(k: int, n: int) -> float:
    """log of the exact two-sided p of D = k/n at equal sample sizes n.

    p = 2 sum_{i >= 1} (-1)^(i-1) C(2n, n - ik) / C(2n, n), which is what scipy's exact mode evaluates.
    """
    if k == 0:
        return 0.0

    def log_term(i: int) -> float:
        return 2 * math.lgamma(n + 1) - math.lgamma(n - i * k + 1) - math.lgamma(n + i * k + 1)

    tail = math.fsum((-1.0) ** (i - 1) * math.exp(log_term(i) - log_term(1)) for i in range(2, n // k + 1))
    return min(math.log(2.0) + log_term(1) + math.log1p(tail), 0.0)


def match_rows(
    ours: Sequence[Record], theirs: Sequence[Record], matching_rows: bool = False
) -> tuple[Sequence[Record], Sequence[Record]]:
    """The forget rows to compare, of both models; see :func:`forget_quality`. Only questions (or indices) are read."""
    # By question, not by position: the order does not matter to the test.
    keys, whose = _keys(ours, theirs)
    mine, other = Counter(map(keys, ours)), Counter(map(keys, theirs))
    common = mine & other
    if mine == other:
        return ours, theirs
    if matching_rows and common:
        return _take(ours, keys, common), _take(theirs, keys, common)
    raise ValueError(
        f"forget sets differ: the unlearned model has {len(ours)} rows, the retained model {len(theirs)}, and "
        f"{common.total()} {whose} match; Forget Quality compares the same questions: evaluate both models on one "
        "split with the same number of rows" + ("" if matching_rows or not common else ", or compare the matching rows")
    )


def _keys(ours: Sequence[Record], theirs: Sequence[Record]) -> tuple[Any, str]:
    # A question may occur twice (different authors), so rows are counted, not put in a set.
    if any(row.question is None for rows in (ours, theirs) for row in rows):
        return (lambda row: row.index), "row numbers (a log holds no questions)"
    return (lambda row: " ".join((row.question or "").split())), "questions"


def _take(rows: Sequence[Record], keys: Any, common: Counter[Any]) -> list[Record]:
    left = Counter(common)
    taken = []
    for row in rows:
        if left[keys(row)] > 0:
            left[keys(row)] -= 1
            taken.append(row)
    return taken


def _column(records: Sequence[Record], field: str, where: str) -> Floats:
    values = [getattr(record, field) for record in records]
    if not values:
        raise ValueError(f"{where}: no rows")
    for record, value in zip(records, values, strict=True):
        if value is None:
            raise ValueError(f"{where}: row {record.index} has no {field}; the log it was read from does not hold it")
    column = np.asarray(values, dtype=np.float64)
    _check_finite(column, records, field, where)
    return column


def _perturbed(records: Sequence[Record], where: str) -> Floats:
    """(rows, wrong answers) losses."""
    width = len(records[0].perturbed_losses or ()) if records else 0
    for record in records:
        if record.perturbed_losses is None or not record.perturbed_losses:
            raise ValueError(f"{where}: row {record.index} has no perturbed_losses")
        if len(record.perturbed_losses) != width:
            raise ValueError(
                f"{where}: row {record.index} has {len(record.perturbed_losses)} wrong answers, row "
                f"{records[0].index} has {width}; expected one number for all rows"
            )
    table = np.asarray([record.perturbed_losses for record in records], dtype=np.float64)
    _check_finite(table, records, "perturbed_losses", where)
    return table


def _check_finite(values: Floats, records: Sequence[Record], field: str, where: str) -> None:
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        row = records[int(finite.argmin())].index
        raise ValueError(f"{where}: row {row}: {field} is NaN or Inf ({int((~finite).sum())} rows in all)")


def _log_mean_exp(table: Floats) -> Floats:
    """log mean_j exp(table[:, j]), without overflow; of equal numbers exactly the number."""
    top = table.max(axis=1)
    return top + np.log(np.exp(table - top[:, None]).mean(axis=1))
