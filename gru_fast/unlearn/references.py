"""The model before unlearning: its log-probabilities, computed once and kept, and its logits where KL needs them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gru_fast.core.sharded.shards import is_sharded, local
from gru_fast.data.pairs import UnlearnDataset
from gru_fast.data.sequences import Encoded, content_hash
from gru_fast.models.forward import Autocast, logits_of, of_each_row
from gru_fast.models.frozen import frozen
from gru_fast.models.head import HiddenStates, label_scores_of, reference_of
from gru_fast.models.identity import fingerprint, has_new_adapters
from gru_fast.models.partitioned import has_partitions, is_partitioned, piece_of, release
from gru_fast.runs.files import write_text
from gru_fast.runs.progress import progress_bar
from gru_fast.unlearn.engines.fsdp import reshard, sharded_modules
from gru_fast.unlearn.hidden import hidden_states

KL_POSITIONS = ("all", "attended")  # what kl_divergence is averaged over
_FORMAT = 1  # of the file


class ReferenceLogProbs:
    """Sum of log p over the label tokens of each sequence, under the model before unlearning (-NLL_i,ref).

    NPO and DPO read nothing else of that model: one pass before training replaces a second model in memory. Values are
    kept by the content of the sequence (ids and labels), so that the pairs of all epochs share them, and a store of
    other data is noticed when it is read.

    >>> store = ReferenceLogProbs.compute(model, dataset, ["forget"], epochs=5, pad_token_id=0)  # doctest: +SKIP
    >>> store.save("run/reference_log_probs.json")  # doctest: +SKIP
    >>> dataset.attach(store)[0]["forget"]["reference_log_probs"]  # doctest: +SKIP
    -41.25
    """

    def __init__(self, log_probs: Mapping[str, float], parts: Iterable[str], model: str) -> None:
        """``log_probs`` by :func:`content_hash`; ``parts`` covered; ``model``: its :func:`fingerprint`."""
        self._log_probs = dict(log_probs)
        self.parts = tuple(parts)
        self.model = model

    @classmethod
    def compute(
        cls,
        model: nn.Module,
        dataset: UnlearnDataset,
        parts: Sequence[str],
        epochs: int = 1,
        batch_size: int = 8,
        pad_token_id: int = 0,
        *,
        progress: bool = True,
        autocast: Autocast = nullcontext,
    ) -> ReferenceLogProbs:
        """Scores every sequence that ``dataset`` gives out for ``parts`` in epochs 0..epochs-1, each once.

        Args:
            model: a causal LM as it is before unlearning (adapters included, as they are). Run without gradients and in
                eval mode; its modes come back.
            dataset: see :class:`~gru_fast.data.pairs.UnlearnDataset`. Its epoch is left alone.
            parts: of its items, as in ``Method.reference_log_probs``.
            epochs: how many the training will have; part of an epoch counts as one.
            batch_size: sequences per forward pass; they are sorted by length, longest first.
            pad_token_id: for the padding; never scored.
            progress: whether to show a progress bar.
            autocast: makes the context to run the model in, for example ``trainer.compute_loss_context_manager``: use
                the one of the training, so that the log-ratios start at 0.

        Every process of a distributed run computes all of them: the forward pass over the data costs less than a
        fraction of an epoch, and nothing has to be exchanged. A model sharded by FSDP2 runs as it is.

        Raises:
            ValueError: a part that the data does not have; a model that gives NaN or Inf.
        """
        found = _rows_to_score(dataset, parts, epochs)
        rows = dict(sorted(found.items(), key=lambda item: -len(item[1]["input_ids"])))  # in the file as they are run
        with progress_bar(len(rows), "Reference log-probabilities", unit="seq", shown=progress) as advance:
            sums = of_each_row(
                model,
                list(rows.values()),
                lambda batch: label_scores_of(model, batch).sequence_log_probs.tolist(),
                batch_size=batch_size,
                pad_token_id=pad_token_id,
                autocast=autocast,
                advance=advance,
            )
        reshard(model)
        log_probs: dict[str, float] = dict(zip(rows, sums, strict=True))
        broken = sum(not math.isfinite(value) for value in sums)
        if broken:
            raise ValueError(
                f"reference_log_probs: the model gives NaN or Inf for {broken} of {len(log_probs)} sequences before "
                "any training; load it in bfloat16 or float32"
            )
        return cls(log_probs, parts, fingerprint(model))

    def __len__(self) -> int:
        return len(self._log_probs)

    def __contains__(self, row: Encoded) -> bool:
        return content_hash(row) in self._log_probs

    def __getitem__(self, row: Encoded) -> float:
        """Sum of log p of a sequence."""
        try:
            return self._log_probs[content_hash(row)]
        except KeyError:
            raise ValueError(
                f"reference_log_probs: none for a sequence of {len(row['input_ids'])} tokens among the {len(self)} "
                "kept; they belong to other data, another seed, or fewer epochs: compute them anew"
            ) from None

    def missing(self, dataset: UnlearnDataset, epochs: int = 1) -> int:
        """How many sequences that ``dataset`` gives out in ``epochs`` are not here, for the parts covered."""
        return sum(key not in self._log_probs for key in _rows_to_score(dataset, self.parts, epochs))

    def merge(self, other: ReferenceLogProbs) -> ReferenceLogProbs:
        """Both together, for example those of training and of evaluation data. They must be of one model."""
        if other.model != self.model:
            raise ValueError(_other_model("reference_log_probs", self.model, other.model))
        parts = dict.fromkeys((*self.parts, *other.parts))
        return ReferenceLogProbs({**self._log_probs, **other._log_probs}, parts, self.model)

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, whole or not at all: a run killed meanwhile leaves the old file."""
        content = {"format": _FORMAT, "model": self.model, "parts": self.parts, "log_probs": self._log_probs}
        write_text(path, json.dumps(content, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> ReferenceLogProbs:
        """Reads what :meth:`save` wrote, bit for bit.

        ``model``: the model before unlearning, which must be the one the file was made with. None when it cannot be
        asked, because it has been trained since (a checkpoint's own file).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or one of another model.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected reference log-probabilities of this run")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"{path}: expected format {_FORMAT}, got {content['format']}; upgrade gru_fast")
            store = cls({str(k): float(v) for k, v in content["log_probs"].items()}, content["parts"], content["model"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: expected a file of ReferenceLogProbs.save(), got something else ({error!r})"
            ) from error
        if model is not None and (found := fingerprint(model)) != store.model:
            raise ValueError(_other_model(str(path), found, store.model))
        return store

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} sequences, {', '.join(self.parts)}, model {self.model[:8]})"


class ReferenceModel:
    """Logits or hidden states of the model as it was when this was made, for methods that compare with it.

    What is frozen is shared with the model in training; of what is trainable a copy is kept, in its dtype, beside it.
    So LoRA costs a copy of the adapters only, and new adapters, which change nothing yet, not even that: they are
    switched off. Make it before training, and before a checkpoint is loaded into the model.

    Of a model sharded by FSDP2 or ZeRO-3 each process keeps the copy of its shards, and exchanges these for it
    meanwhile.

    Args:
        model: a causal LM or a peft model around one, not wrapped for distributed training.
        offload: keep the copy in the host's memory, page-locked where there is an accelerator; a weight at a time is
            exchanged for it before a pass and after it.
    """

    def __init__(self, model: nn.Module, *, offload: bool = False) -> None:
        self._model = model
        self._is_sharded, self._is_offloaded = bool(sharded_modules(model)) or has_partitions(model), offload
        self._adapters_off = not self._is_sharded and has_new_adapters(model)
        trainable = {} if self._adapters_off else {n: p for n, p in model.named_parameters() if p.requires_grad}
        copied = _on_the_host if offload else torch.clone
        self._copies = {n: copied(piece_of(p) if is_partitioned(p) else p.detach()) for n, p in trainable.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the copy, on the host or beside the model."""
        return sum(copy.numel() * copy.element_size() for copy in map(local, self._copies.values()))

    def logits(self, part: Mapping[str, Tensor]) -> Tensor:
        """(B, T, V) for ``input_ids`` and ``attention_mask`` (B, T): no gradient, eval mode, the caller's autocast."""
        with self._as_it_was():
            return logits_of(self._model, part, self._passed)

    def to_compare(self, part: Mapping[str, Tensor]) -> HiddenStates | Tensor:
        """What :func:`gru_fast.models.head.divergence_of` compares with, or, where that cannot be, :meth:`logits`."""
        with self._as_it_was():
            found = reference_of(self._model, part, self._passed)
            # The head's weights are not to be those that come back.
            return found.with_own_head() if self._is_exchanged and isinstance(found, HiddenStates) else found

    def hidden_states(self, part: Mapping[str, Tensor], layer: int) -> Tensor:
        """(B, T, D) output of a layer, from 0, see :func:`gru_fast.unlearn.hidden.hidden_states`; as :meth:`logits`."""
        with self._as_it_was():
            return hidden_states(self._model, part, layer, params=self._passed)

    @property
    def _is_exchanged(self) -> bool:
        return self._is_sharded or self._is_offloaded

    @property
    def _passed(self) -> dict[str, Tensor]:
        """The copies that go into the call itself: FSDP2 would not take them, but put its own weights together."""
        return {} if self._is_exchanged else self._copies

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Frozen, new adapters off; shards exchanged."""
        with ExitStack() as stack:
            if self._is_exchanged:
                stack.enter_context(_exchanged(self._model, self._copies))
            stack.enter_context(frozen(self._model))
            if self._adapters_off:
                stack.enter_context(_same_trainable(self._model))
                stack.enter_context(self._model.disable_adapter())  # type: ignore[operator]
            yield

    def __repr__(self) -> str:
        where = " on the host" if self._is_offloaded else ""
        kept = "adapters off" if self._adapters_off else f"{self.nbytes:,} bytes of copies{where}"
        return f"{type(self).__name__}({type(self._model).__name__}, {kept})"


def kl_divergence(logits: Tensor, reference_logits: Tensor, positions: Tensor | None = None) -> Tensor:
    """KL(p_ref, p): ``mean over positions of sum over the vocabulary of p_ref * (log p_ref - log p)``, in nats.

    Args:
        logits: (B, T, V), any float dtype, of the model in training. The softmax is taken in float32 at least.
        reference_logits: (B, T, V), of the model before unlearning; no gradient flows into it.
        positions: (B, T), nonzero where a position counts, for example the attention mask. None: all of them, prompt
            and padding included, as in the public GRU code, TOFU and the unified framework. There the public GRU code
            pads every row to 500 tokens, and so makes the term several times smaller than padding to the longest row
            of the batch (the others, and this project's collators).

    Returns:
        A scalar, float32 (float64 for float64 logits), at least 0 to rounding.
    """
    if logits.shape != reference_logits.shape:
        raise ValueError(
            f"reference_logits: expected shape {tuple(logits.shape)} as logits, got {tuple(reference_logits.shape)}"
        )
    if positions is not None:
        if positions.shape != logits.shape[:-1]:
            raise ValueError(f"positions: expected shape {tuple(logits.shape[:-1])}, got {tuple(positions.shape)}")
        counted = positions.bool()
        logits, reference_logits = logits[counted], reference_logits[counted]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p = F.log_softmax(logits, dim=-1, dtype=dtype).flatten(0, -2)
    log_ref = F.log_softmax(reference_logits.detach(), dim=-1, dtype=dtype).flatten(0, -2)
    return F.kl_div(log_p, log_ref, reduction="batchmean", log_target=True)


@contextmanager
def _exchanged(model: nn.Module, others: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, ``model`` has the weights or shards of ``others``, and these have its own. None are left put together.

    Unseen by autograd: a graph that is there finds the weights of its forward pass again.
    """
    params = dict(model.named_parameters())
    pairs = [(_memory_of(params[name]), local(other)) for name, other in others.items()]
    _cut_up(model)
    _exchange(pairs)
    try:
        yield
    finally:
        _cut_up(model)
        _exchange(pairs)


def _cut_up(model: nn.Module) -> None:
    """Parameters are shards again, whoever has put them together."""
    reshard(model)
    release(model)


def _memory_of(param: Tensor) -> Tensor:
    """Of a plain parameter not by ``detach()``, which would share its count of changes."""
    return piece_of(param) if is_partitioned(param) or is_sharded(param) else param.data


def _on_the_host(tensor: Tensor) -> Tensor:
    shard = local(tensor)
    return torch.empty_like(shard, device="cpu", pin_memory=shard.device.type == "cuda").copy_(shard)


@torch.no_grad()
def _exchange(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for a, b in pairs:
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)


@contextmanager
def _same_trainable(model: nn.Module) -> Iterator[None]:
    """Afterwards the same parameters are trainable: where peft switches adapters on again, it makes them all so."""
    trainable = [(param, param.requires_grad) for param in model.parameters()]
    try:
        yield
    finally:
        for param, was in trainable:
            param.requires_grad_(was)


def _rows_to_score(dataset: UnlearnDataset, parts: Iterable[str], epochs: int) -> dict[str, Encoded]:
    """The distinct sequences of the parts in epochs 0..epochs-1, by content; without those that have a value of their
    own."""
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    rows: dict[str, Encoded] = {}
    for part in parts:
        for epoch in range(1 if part == "forget" else epochs):  # only what is drawn changes with the epoch
            for index, draw in product(range(len(dataset)), range(dataset.draws(part))):
                row = dataset.encoded(part, index, epoch, draw)
                if "reference_log_probs" not in row:
                    rows.setdefault(content_hash(row), row)
    return rows


def _other_model(what: str, expected: str, got: str) -> str:
    return (
        f"{what}: expected reference log-probabilities of the model before unlearning (fingerprint {expected[:8]}), "
        f"got those of another model ({got[:8]}); delete them to have them computed anew"
    )
