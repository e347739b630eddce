"""Everything of an evaluation that sees a model: log-probabilities of labels, greedy generations, kept row by row.

A benchmark says what a row's sequences and prompts are; :func:`score_rows` has them scored in batches and appends each
finished row to a file, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gru_fast.runs import write_json
from gru_fast.unlearn.batch import IGNORE_INDEX, label_scores
from gru_fast.unlearn.data import Encoded, SequenceCollator
from gru_fast.unlearn.references import frozen

Autocast = Callable[[], AbstractContextManager[Any]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated, which is loaded only if something is left to score.

    Args:
        asked: how it was asked for (model, revision, dtype, ...); kept in the summary.
        output_dir: where its evaluation goes.
        load: the model on its device, its tokenizer, and its prompts' template.
        is_older_than: whether its files are older than another file, as far as can be told without loading it.
        batch_size: rows at a time.
        overwrite: score anew what is there.
        progress: whether to show progress bars.
    """

    asked: Mapping[str, Any]
    output_dir: Path
    load: Callable[[], tuple[Any, Any, Any]]
    is_older_than: Callable[[Path], bool]
    batch_size: int = 16
    overwrite: bool = False
    progress: bool = True


# ---- what a model says of given sequences ----------------------------------------------------------------------------


@dataclass(frozen=True)
class SequenceLoss:
    """Teacher-forced loss of one sequence: mean of -log p over its ``num_tokens`` label tokens, natural logarithm."""

    loss: float
    num_tokens: int


def label_log_probs(
    model: Any, sequences: Sequence[Encoded], *, batch_size: int, pad_token_id: int, autocast: Autocast = nullcontext
) -> list[Tensor]:
    """log p of every label token given what comes before it, per sequence: float32 on the CPU, of shape (labels,).

    Args:
        model: a causal LM; run in eval mode without gradients, its modes come back.
        sequences: tokens and labels, -100 where nothing is scored; in any order, longest are run first.
        batch_size: sequences per forward pass.
        pad_token_id: for padding on the right; never attended.
        autocast: makes the context to run the model in.
    """
    found: list[Tensor] = [torch.empty(0)] * len(sequences)
    collate = SequenceCollator(pad_token_id)
    with frozen(model):
        for rows in _by_length([len(row["input_ids"]) for row in sequences], batch_size):
            batch = {name: value.to(model.device) for name, value in collate([sequences[i] for i in rows]).items()}
            with autocast():
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
            scores = label_scores(logits, batch["labels"])
            for i, log_probs in zip(rows, scores.log_probs.cpu().split(scores.counts.tolist()), strict=True):
                found[i] = log_probs
    return found


def losses(
    model: Any, sequences: Sequence[Encoded], *, batch_size: int, pad_token_id: int, autocast: Autocast = nullcontext
) -> list[SequenceLoss]:
    """Mean loss of each sequence, see :func:`label_log_probs`. The mean is taken in float64.

    Raises:
        ValueError: a sequence without a label token; RuntimeError: a loss that is NaN or Inf (a diverged model).
    """
    for i, row in enumerate(sequences):
        if not num_labels(row):
            raise ValueError(f"sequences[{i}]: none of its {len(row['input_ids'])} tokens is scored")
    found = label_log_probs(model, sequences, batch_size=batch_size, pad_token_id=pad_token_id, autocast=autocast)
    result = [SequenceLoss(-float(row.double().mean()), len(row)) for row in found]
    broken = sum(not math.isfinite(row.loss) for row in result)
    if broken:
        raise RuntimeError(
            f"the model gives NaN or Inf for {broken} of {len(result)} sequences; it has diverged (look at the run's "
            "losses), or its numbers do not fit float16 (use bfloat16 or float32)"
        )
    return result


def num_labels(row: Encoded) -> int:
    """Label tokens of a sequence; label 0 has no prediction and never counts."""
    return sum(label != IGNORE_INDEX for label in row["labels"][1:])


# ---- what a model writes ---------------------------------------------------------------------------------------------


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    *,
    batch_size: int,
    autocast: Autocast = nullcontext,
) -> list[str]:
    """Continuation of each prompt by greedy decoding, without special tokens; ends before the first end-of-sequence.

    Pure greedy: sampling and penalties of the model's own generation config are not applied. Padding is on the left,
    and each row has its own limit, so that in exact arithmetic the text does not depend on the batch.

    Args:
        model: a causal LM with ``generate``; eval mode and no gradients meanwhile.
        tokenizer: for decoding, its end-of-sequence and its padding token (end-of-sequence where it has none).
        prompts: token ids, each at least one.
        max_new_tokens: most tokens to write, one number or one per prompt; 0 gives "".
        batch_size: prompts per batch; they are sorted by length.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise ValueError(f"max_new_tokens: expected one number or {len(prompts)}, got {len(limits)}")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{i}]: expected at least one token, got none")
    texts = [""] * len(prompts)
    ends = _end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = SequenceCollator(pad, padding_side="left")
    writable = [i for i, limit in enumerate(limits) if limit > 0]
    with frozen(model):
        for some in _by_length([len(prompts[i]) for i in writable], batch_size):
            rows = [writable[i] for i in some]
            batch = {
                name: value.to(model.device)
                for name, value in collate([{"input_ids": prompts[i]} for i in rows]).items()
            }
            with autocast():
                output = model.generate(
                    **batch, generation_config=_greedy(max(limits[i] for i in rows), sorted(ends), pad)
                )
            written = output[:, batch["input_ids"].shape[1] :].tolist()
            for i, ids in zip(rows, written, strict=True):
                end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
                texts[i] = tokenizer.decode(ids[: min(end, limits[i])], skip_special_tokens=True)
    return texts


def _greedy(max_new_tokens: int, ends: list[int], pad: int) -> Any:
    from transformers import GenerationConfig

    # Given explicitly, since what is left out comes from the model's own config: chat models ship penalties.
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=0,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokenizer's and the model's: chat models end their turn with another token than a text."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])}
    return {token for token in found if token is not None}


def _by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows in batches, longest first: little padding, and a batch that does not fit in memory shows at once."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


# ---- kept row by row -------------------------------------------------------------------------------------------------


class RecordFolder:
    """A folder of ``NAME.jsonl`` files, one JSON object with its ``index`` a line, all scored with the same settings.

    Args:
        path: the folder, made if missing.
        settings: what the records depend on (a model's fingerprint, a template, ...), kept in ``settings.json``.
            Numbers, texts and dicts of them.
        overwrite: begin anew where records of other settings, or any records, are there.

    Raises:
        ValueError: there are records of other settings; the message names the first that differs.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        if overwrite:
            for file in self.path.glob("*.jsonl"):
                file.unlink()
        else:
            check_settings(self.path, settings, whole=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "settings.json", dict(settings))

    def read(self, name: str) -> dict[int, dict[str, Any]]:
        """Finished rows by index. A last line that was cut off by a crash is dropped, from the file as well."""
        file = self._file(name)
        if not file.is_file():
            return {}
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with file.open("r+b") as handle:
                handle.truncate(whole)
        # Not splitlines(): generations hold U+2028 and other separators, which JSON does not escape.
        lines = content[:whole].decode("utf-8", errors="replace").split("\n")
        try:
            rows = [json.loads(line) for line in lines if line]
            return {row["index"]: row for row in rows}
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(
                f"{file}: holds a line that is no record; delete the file to have it scored anew"
            ) from None

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds finished rows; they are in the file when this returns."""
        with self._file(name).open("a", encoding="utf-8", newline="\n") as handle:
            handle.write(_lines(rows))

    def sort(self, name: str) -> list[dict[str, Any]]:
        """All rows of a finished file by index; the file is in that order afterwards."""
        found = self.read(name)
        rows = [found[index] for index in sorted(found)]
        if list(found) != sorted(found):
            new = self.path / f"{name}.jsonl.new"
            new.write_text(_lines(rows), encoding="utf-8", newline="\n")
            new.replace(self._file(name))
        return rows

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings a folder of records was scored with; None where there are none."""
    file = path / "settings.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def check_settings(path: Path, wanted: Mapping[str, Any], *, whole: bool = False) -> None:
    """Refuses a folder with records of other settings. ``whole``: ``wanted`` is all of them, not only some."""
    kept = read_settings(path)
    mend = "give another output folder, or --overwrite to score anew"
    if kept is None:
        if any(path.glob("*.jsonl")):
            raise ValueError(f"{path}: holds records of unknown settings (no settings.json); {mend}")
        return
    for key in differing(kept if whole else {key: kept.get(key) for key in wanted}, wanted):
        raise ValueError(
            f"{path}: holds records with {key} {kept.get(key)!r}, this evaluation has {wanted.get(key)!r}; {mend}"
        )


def differing(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of the settings that are not the same, in the order of ``wanted``."""
    as_kept = json.loads(json.dumps(dict(wanted)))
    return [key for key in {**as_kept, **kept} if kept.get(key) != as_kept.get(key)]


def score_rows(
    folder: RecordFolder,
    name: str,
    rows: Sequence[_T],
    work: Callable[[list[_T]], list[dict[str, Any]]],
    *,
    lengths: Sequence[int],
    batch_size: int,
    progress: bool = True,
    label: str | None = None,
) -> list[dict[str, Any]]:
    """One record per row, by index: those that ``folder`` has, and the others from ``work``, kept after each batch.

    Args:
        name: of the file, ``NAME.jsonl``.
        rows: whatever ``work`` takes; a row's index is its place here.
        work: some rows -> a JSON object for each, in the same order.
        lengths: of the rows, in tokens: the longest are done first.
        batch_size: rows per call of ``work``.
        label: of the progress bar; by default the name.
    """
    done = folder.read(name)
    with progress_bar(len(rows), label or name, initial=len(done), shown=progress) as advance:
        for group in _by_length(lengths, batch_size):
            left = [i for i in group if i not in done]
            if left:
                found = work([rows[i] for i in left])
                folder.append(name, [{"index": i, **row} for i, row in zip(left, found, strict=True)])
                advance(len(left))
    return folder.sort(name)


@contextmanager
def progress_bar(total: int, what: str, *, initial: int = 0, shown: bool = True) -> Iterator[Callable[[int], Any]]:
    """A bar of ``total`` rows on stderr; gives the function that moves it on."""
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=initial, desc=what, unit="row", disable=not shown) as bar:
        yield bar.update
