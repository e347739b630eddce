"""What the optional metrics need of a model: token by token, gradient norms; of a classifier: is this language?"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.data.sequences import IGNORE_INDEX, Encoded, SequenceCollator, content_hash
from gru_fast.evaluation.record_folder import RecordFolder, RowSet, score_sets
from gru_fast.evaluation.scoring import Autocast, by_length, losses, num_labels
from gru_fast.metrics import scores
from gru_fast.metrics.fluency import CLEAN_LABEL, GIBBERISH_MODEL
from gru_fast.models.frozen import frozen
from gru_fast.models.identity import fingerprint
from gru_fast.models.scores import label_scores

# A pass gives some fields of gru_fast.metrics.scores.TextRecord, and is one file of records per set of texts.
PASSES = {
    "tokens": ("log_probs", "correct", "vocab_means", "vocab_variances", "zlib_bytes"),
    "gradients": ("gradient_norm",),
    "reference": ("reference_loss",),
    "gibberish": ("clean",),
}
OF_MODEL = ("tokens", "gradients")  # passes that share a folder: they depend on the model and the texts alone

_MAX_ELEMENTS = 2**24  # of the vocabulary-wide tensors made at a time, beside the model's logits: 64 MiB in float32
_CLASSIFIER_TOKENS = 512  # of a generation, as in the unified framework


# ---- what a model says of given sequences ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenScores:
    """Of the n label tokens of one sequence, float32 on the CPU, of shape (n,), natural logarithm.

    Args:
        log_probs: log p of the label given all before it.
        correct: bool, whether the label is the most probable token.
        means, variances: of log p over the vocabulary, under p.
    """

    log_probs: Tensor
    correct: Tensor
    means: Tensor
    variances: Tensor


def token_scores(
    model: Any, sequences: Sequence[Encoded], *, batch_size: int, pad_token_id: int, autocast: Autocast = nullcontext
) -> list[TokenScores]:
    """See :class:`TokenScores`. What is kept is four numbers a token; beside the model's own logits, 64 MiB at a time.

    Args:
        model: a causal LM; run in eval mode without gradients, its modes come back.
        sequences: tokens and labels, -100 where nothing is scored; in any order, longest are run first.
        batch_size: sequences per forward pass.
        pad_token_id: for padding on the right; never attended.
        autocast: makes the context to run the model in.

    Raises:
        ValueError: a sequence without a label token; RuntimeError: NaN or Inf (a diverged model).
    """
    _check_labels(sequences)
    found: dict[int, TokenScores] = {}
    collate = SequenceCollator(pad_token_id)
    with frozen(model):
        for rows in by_length([len(row["input_ids"]) for row in sequences], batch_size):
            batch = {name: value.to(model.device) for name, value in collate([sequences[i] for i in rows]).items()}
            with autocast():
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
            scores = _scores_of_labels(logits, batch["labels"]).cpu()
            counts = [num_labels(sequences[i]) for i in rows]
            for i, (log_probs, correct, means, variances) in zip(rows, scores.split(counts, dim=1), strict=True):
                found[i] = TokenScores(log_probs, correct > 0, means, variances)
    _check_finite([float(row.log_probs.sum()) for row in found.values()])
    return [found[i] for i in range(len(sequences))]


def _scores_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """(4, N) float32: log p, whether right, mean and variance over the vocabulary, sequence after sequence."""
    targets = labels[:, 1:]
    rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    step = max(1, _MAX_ELEMENTS // logits.shape[-1])
    parts = []
    for start in range(0, len(rows), step):
        at = rows[start : start + step], columns[start : start + step]
        picked, wanted = logits[at], targets[at]
        correct = picked.argmax(dim=-1) == wanted
        log_probs = picked.to(torch.promote_types(picked.dtype, torch.float32)).log_softmax(dim=-1)
        of_labels = log_probs.gather(1, wanted[:, None])[:, 0]
        probs = log_probs.exp()
        # A token of probability 0 counts nothing, whatever its logarithm; -Inf times 0 would be NaN.
        log_probs.clamp_(min=-1e4)
        means = (probs * log_probs).sum(dim=-1)
        variances = (probs * (log_probs - means[:, None]).square()).sum(dim=-1)
        parts.append(torch.stack([of_labels, correct.to(of_labels.dtype), means, variances]).float())
    return torch.cat(parts, dim=1)


def gradient_norms(model: Any, sequences: Sequence[Encoded], *, autocast: Autocast = nullcontext) -> list[float]:
    """Per sequence, the mean over parameter tensors of the L2 norm of the gradient of its mean loss.

    The loss is the mean of -log p over the label tokens but the last (:func:`gru_fast.metrics.scores.but_last`). All
    parameters count, frozen or not. One backward pass a sequence; each gradient is dropped when its norm is known, so
    that there is never more than that of one parameter. Gradients that were there before come back.

    Raises:
        ValueError: a sequence without a label token; RuntimeError: NaN or Inf (a diverged model).
    """
    _check_labels(sequences)
    found = []
    with frozen(model), _norms_of_gradients(model) as norms, torch.enable_grad():
        for row in sequences:
            ids, labels = (torch.tensor([row[key]], device=model.device) for key in ("input_ids", "labels"))
            with autocast():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            loss = -scores.but_last(label_scores(logits, labels).log_probs).mean()
            loss.backward()
            found.append(float(torch.stack([norm.cpu() for norm in norms]).mean()))
            norms.clear()
    _check_finite(found)
    return found


@contextmanager
def _norms_of_gradients(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside: every parameter requires a gradient, whose norm goes to the list and which then is dropped."""
    params = [param for param in model.parameters() if param.is_floating_point()]
    before = [(param.requires_grad, param.grad) for param in params]
    norms: list[Tensor] = []

    def take(param: Tensor) -> None:
        if param.grad is not None:
            norms.append(torch.linalg.vector_norm(param.grad, dtype=torch.promote_types(param.dtype, torch.float32)))
        param.grad = None

    hooks = []
    try:
        for param in params:
            param.grad = None
            param.requires_grad_(True)
            hooks.append(param.register_post_accumulate_grad_hook(take))
        yield norms
    finally:
        for hook in hooks:
            hook.remove()
        for param, (requires_grad, grad) in zip(params, before, strict=True):
            param.requires_grad_(requires_grad)
            param.grad = grad


def _check_labels(sequences: Sequence[Encoded]) -> None:
    for i, row in enumerate(sequences):
        if not num_labels(row):
            raise ValueError(f"sequences[{i}]: none of its {len(row['input_ids'])} tokens is scored")


def _check_finite(values: Sequence[float]) -> None:
    broken = sum(not math.isfinite(value) for value in values)
    if broken:
        raise RuntimeError(
            f"the model gives NaN or Inf for {broken} of {len(values)} sequences; it has diverged (look at the run's "
            "losses), or its numbers do not fit float16 (use bfloat16 or float32)"
        )


# ---- what a classifier says of generations ---------------------------------------------------------------------------


def load_classifier(name: str, device: Any) -> tuple[Any, Any]:
    """A text classifier, with its tokenizer. FileNotFoundError where there is none to be had."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        classifier = AutoModelForSequenceClassification.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"gibberish_model: cannot get {name} ({reason}); check the connection, or give --gibberish-model a folder"
        ) from None
    return classifier.to(device).eval(), tokenizer


def clean_probabilities(classifier: Any, tokenizer: Any, texts: Sequence[str], *, batch_size: int) -> list[float]:
    """Probability of the label "clean" for each text, of its first 512 tokens.

    Raises:
        ValueError: a classifier without that label.
    """
    labels = {str(label).lower(): int(i) for i, label in classifier.config.id2label.items()}
    if CLEAN_LABEL not in labels:
        raise ValueError(
            f'gibberish_model: expected a classifier with a label "{CLEAN_LABEL}", got {", ".join(labels) or "none"}'
        )
    found: list[float] = [0.0] * len(texts)
    with frozen(classifier):
        for rows in by_length([len(text) for text in texts], batch_size):
            batch = tokenizer(
                [texts[i] for i in rows],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=_CLASSIFIER_TOKENS,
            ).to(classifier.device)
            probs = classifier(**batch).logits.float().softmax(dim=-1)[:, labels[CLEAN_LABEL]]
            for i, prob in zip(rows, probs.tolist(), strict=True):
                found[i] = prob
    return found


# ---- the passes, kept row by row -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scorer:
    """What the passes are made with.

    Args:
        model, tokenizer: a causal LM and its tokenizer.
        pad_token_id: for padding.
        reference: loads the reference model, on a device; called only if a metric needs it.
        reference_name, gibberish_model: see :class:`gru_fast.evaluation.extra.ExtraOptions`.
        batch_size: rows at a time.
        autocast, progress, overwrite: as in an evaluation.
    """

    model: Any
    tokenizer: Any
    pad_token_id: int
    reference: Callable[[], Any] | None = None
    reference_name: str | None = None
    gibberish_model: str = GIBBERISH_MODEL
    batch_size: int = 16
    autocast: Autocast = nullcontext
    progress: bool = True
    overwrite: bool = False


def folder_of(folder: Path, of: str, each: str) -> Path:
    """The folder of a pass over a set, in that of all records."""
    return folder / of if each in OF_MODEL else folder / of / each


def settings_of(model: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What records of a model depend on, beside the texts."""
    return {**settings, "dtype": str(model.dtype).removeprefix("torch."), "model": fingerprint(model)}


def score_by_model(
    scorer: Scorer, folder: Path, sequences: Sequence[Encoded], passes: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """The passes that share a folder."""
    records = RecordFolder(folder, {**settings, **_content(sequences)}, overwrite=scorer.overwrite)
    how: dict[str, Any] = {"batch_size": scorer.batch_size, "autocast": scorer.autocast}

    def tokens(rows: list[Encoded]) -> list[dict[str, Any]]:
        found = token_scores(scorer.model, rows, pad_token_id=scorer.pad_token_id, **how)
        return [_to_json(one, _text(scorer.tokenizer, row)) for one, row in zip(found, rows, strict=True)]

    def gradients(rows: list[Encoded]) -> list[dict[str, Any]]:
        norms = gradient_norms(scorer.model, rows, autocast=scorer.autocast)
        return [{"gradient_norm": norm} for norm in norms]

    work = {"tokens": tokens, "gradients": gradients}
    _keep(scorer, records, {each: work[each] for each in OF_MODEL if each in passes}, sequences)


def score_by_reference(
    scorer: Scorer, folder: Path, sets: Mapping[str, Sequence[Encoded]], settings: Mapping[str, Any]
) -> None:
    """The losses of the reference model, which is loaded if there are sets to score."""
    if not sets or scorer.reference is None:
        return
    model = scorer.reference()
    own = {**settings_of(model, settings), "reference": scorer.reference_name}
    how: dict[str, Any] = {"batch_size": scorer.batch_size, "autocast": scorer.autocast}

    def work(rows: list[Encoded]) -> list[dict[str, Any]]:
        found = losses(model, rows, pad_token_id=scorer.pad_token_id, **how)
        return [{"reference_loss": one.loss} for one in found]

    for of, sequences in sets.items():
        path, content = folder_of(folder, of, "reference"), _content(sequences)
        records = RecordFolder(path, {**own, **content}, overwrite=scorer.overwrite)
        _keep(scorer, records, {"reference": work}, sequences)


def score_by_classifier(scorer: Scorer, folder: Path, sets: Mapping[str, Sequence[str]]) -> None:
    """The classifier's opinion of generations; it is loaded if there are sets to score."""
    if not sets:
        return
    classifier, tokenizer = load_classifier(scorer.gibberish_model, scorer.model.device)
    own = {"gibberish_model": scorer.gibberish_model, "model": fingerprint(classifier)}

    def work(rows: list[str]) -> list[dict[str, Any]]:
        found = clean_probabilities(classifier, tokenizer, rows, batch_size=scorer.batch_size)
        return [{"clean": value} for value in found]

    for of, texts in sets.items():
        settings = {**own, "texts": hash_of(texts), "num_rows": len(texts)}
        records = RecordFolder(folder_of(folder, of, "gibberish"), settings, overwrite=scorer.overwrite)
        _keep(scorer, records, {"gibberish": work}, texts)


def _keep(
    scorer: Scorer,
    records: RecordFolder,
    passes: Mapping[str, Callable[[list[Any]], list[dict[str, Any]]]],
    rows: Sequence[Any],
) -> None:
    """Some passes over one set."""
    lengths = [len(row) if isinstance(row, str) else len(row["input_ids"]) for row in rows]
    asked = []
    for each, work in passes.items():
        of = records.path.name if each in OF_MODEL else records.path.parent.name
        asked.append(RowSet(each, rows, work, lengths, f"{of}: {each}"))
    score_sets(records, asked, batch_size=scorer.batch_size, progress=scorer.progress)


def _to_json(scores: TokenScores, text: str) -> dict[str, Any]:
    return {
        "log_probs": _short(scores.log_probs),
        "correct": "".join("1" if right else "0" for right in scores.correct.tolist()),
        "vocab_means": _short(scores.means),
        "vocab_variances": _short(scores.variances),
        "zlib_bytes": len(zlib.compress(text.encode("utf-8"))),
    }


def _short(values: Any) -> list[float]:
    """(n,) float32 as the shortest decimals that give the same float32: half the file."""
    return [float(str(value)) for value in values.numpy()]


def _text(tokenizer: Any, row: Encoded) -> str:
    """The text of the label tokens."""
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX], skip_special_tokens=True)


def _content(sequences: Sequence[Encoded]) -> dict[str, Any]:
    return {"texts": hash_of([content_hash(row) for row in sequences]), "num_rows": len(sequences)}


def hash_of(texts: Sequence[str]) -> str:
    """64-bit hash of texts in their order, as 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return digest.hexdigest()
