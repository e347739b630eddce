"""What is kept of the model before unlearning: log-probabilities by content, and logits for the KL terms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.distributions import kl_divergence as exact_kl
from torch.nn import functional as F

from gru_fast.data.pairs import UnlearnDataset
from gru_fast.data.sequences import Encoded, SequenceCollator, content_hash
from gru_fast.models import head
from gru_fast.models.frozen import frozen
from gru_fast.models.identity import fingerprint
from gru_fast.unlearn.references import ReferenceLogProbs, ReferenceModel, kl_divergence

transformers = pytest.importorskip("transformers")

# Names that peft, and transformers before 5.20, know; later ones deprecate them.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning")

VOCABULARY = 23


def llama(seed: int = 0, **options: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        **options,
    )
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config)


def lora(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    settings = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **options}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def row(*ids: int, prompt: int = 1) -> Encoded:
    return {"input_ids": list(ids), "labels": [-100] * prompt + list(ids[prompt:])}


FORGET = [row(1, 5, 6, 7, 2), row(1, 8, 9, prompt=2), row(1, 3, 3, 3, 3, 3, 4, 2, prompt=3)]
RETAIN = [row(1, 10 + i, 11 + i) for i in range(5)]


def idk(index: int, draw: int) -> Encoded:
    return row(1, 5 + index, 15 + draw % 6, prompt=2)


def dataset() -> UnlearnDataset:
    return UnlearnDataset(FORGET, RETAIN, idk)


def compute(
    model: nn.Module, data: UnlearnDataset, parts: list[str], epochs: int = 1, **options: Any
) -> ReferenceLogProbs:
    return ReferenceLogProbs.compute(model, data, parts, epochs, progress=False, **options)


def by_itself(model: nn.Module, sequence: Encoded) -> float:
    """Sum of log p of one sequence, no padding, no batch."""
    ids, labels = torch.tensor([sequence["input_ids"]]), torch.tensor(sequence["labels"])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    return -F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum").item()


# ---- log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_sums_per_sequence_whatever_the_batch(batch_size: int) -> None:
    model = llama()
    store = compute(model, dataset(), ["forget"], batch_size=batch_size, pad_token_id=2)
    assert len(store) == 3
    for sequence in FORGET:
        assert store[sequence] == pytest.approx(by_itself(model, sequence), rel=1e-5)


def test_pairs_of_all_epochs_are_covered_and_scored_once() -> None:
    model, data = llama(), dataset()
    data.set_epoch(1)
    seen = []
    widths = []

    def note(_: nn.Module, __: Any, kwargs: dict[str, Tensor]) -> None:
        seen.append(len(kwargs["input_ids"]))
        widths.append(kwargs["input_ids"].shape[1])

    compute(model, data, ["forget", "idk"], epochs=4, batch_size=5)  # tries which rows can share a batch
    model.register_forward_pre_hook(note, with_kwargs=True)
    store = compute(model, data, ["forget", "idk"], epochs=4, batch_size=5)
    assert data.epoch == 1
    distinct = {content_hash(data.encoded("idk", i, epoch)) for i in range(3) for epoch in range(4)}
    assert len(distinct) < 12  # some answers came twice
    assert sum(seen) == len(store) == len(distinct) + 3
    assert widths == sorted(widths, reverse=True)  # what does not fit into memory fails at once
    assert store.parts == ("forget", "idk")
    data.attach(store)
    for epoch in range(4):
        data.set_epoch(epoch)
        for item in data:  # type: ignore[attr-defined]
            assert item["idk"]["reference_log_probs"] == pytest.approx(by_itself(model, item["idk"]), rel=1e-5)
            assert "reference_log_probs" not in item["retain"]
    assert store.missing(data, epochs=4) == 0
    assert store.missing(data, epochs=40) > 0


def test_too_few_epochs_are_noticed() -> None:
    data = dataset()
    data.attach(compute(llama(), data, ["idk"], epochs=1))
    with pytest.raises(ValueError, match=r"^reference_log_probs: none for a sequence of 3 tokens among the 3 kept"):  # noqa: PT012
        for epoch in range(20):
            data.set_epoch(epoch)
            list(data)  # type: ignore[call-overload]


def test_the_model_comes_back_as_it_was() -> None:
    model = llama(attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()  # someone froze this one
    modes = [module.training for module in model.modules()]
    again = [compute(model, dataset(), ["forget"]) for _ in range(2)]
    assert [module.training for module in model.modules()] == modes
    assert all(again[0][sequence] == again[1][sequence] for sequence in FORGET)  # no dropout
    assert all(param.grad is None for param in model.parameters())
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error_too() -> None:
    model = llama().train()
    with pytest.raises(ZeroDivisionError), frozen(model):  # noqa: PT012
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_autocast_is_entered() -> None:
    entered = []

    @contextmanager
    def autocast() -> Iterator[None]:
        entered.append(True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield

    model = llama()
    exact = compute(model, dataset(), ["forget"])
    rough = compute(model, dataset(), ["forget"], batch_size=2, autocast=autocast)
    assert len(entered) == 3  # for two batches, and when it was looked which dtype it computes in
    difference = max(abs(rough[sequence] - exact[sequence]) for sequence in FORGET)
    assert 0 < difference < 0.5


def test_bfloat16_model() -> None:
    model = llama().to(torch.bfloat16)
    store = compute(model, dataset(), ["forget"])
    assert store[FORGET[0]] == pytest.approx(by_itself(model.float(), FORGET[0]), rel=0.05)


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    ReferenceLogProbs.compute(llama(), dataset(), ["forget"])
    assert "Reference log-probabilities: 100%" in capsys.readouterr().err
    compute(llama(), dataset(), ["forget"])
    assert not capsys.readouterr().err


def test_a_broken_model_is_refused() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[4] = torch.nan
    with pytest.raises(ValueError, match=r"^reference_log_probs: the model gives NaN or Inf for 3 of 3 sequences"):
        compute(model, dataset(), ["forget"])


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r'^part: expected one of forget, got "idk"'):
        compute(llama(), UnlearnDataset(FORGET), ["idk"])
    with pytest.raises(ValueError, match=r"^epochs: expected at least 1, got 0"):
        compute(llama(), dataset(), ["forget"], epochs=0)


def test_content_hash_tells_labels_and_boundaries_apart() -> None:
    rows: list[Encoded] = [
        row(1, 2, 3),
        row(1, 2, 3, prompt=2),
        row(1, 2, 3, 3),
        {"input_ids": [1, 2], "labels": [3, -100, 2, 3]},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3, 0]},
    ]
    assert len({content_hash(r) for r in rows}) == len(rows)
    assert (
        content_hash(row(1, 2, 3)) == "b57f70e3af2deb575b58cb0a86431309"
    )  # files of older versions must stay readable
    tensors: Any = {"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([-100, 2, 3])}
    assert content_hash(tensors) == content_hash(rows[0])


# ---- the file --------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    model = llama()
    store = compute(model, dataset(), ["forget", "idk"], epochs=3)
    path = tmp_path / "new" / "reference_log_probs.json"
    store.save(path)
    loaded = ReferenceLogProbs.load(path, model)
    assert vars(loaded) == vars(store)
    assert list(path.parent.iterdir()) == [path]
    # float32 sums survive the way through JSON
    assert torch.equal(torch.tensor(loaded[FORGET[0]]), torch.tensor(store[FORGET[0]]))


def test_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference_log_probs.json"
    model = llama()
    compute(model, dataset(), ["forget"]).save(path)
    with pytest.raises(
        ValueError, match=r"reference_log_probs.json: expected .* of the model before unlearning .*delete"
    ):
        ReferenceLogProbs.load(path, llama(seed=1))
    assert len(ReferenceLogProbs.load(path)) == 3  # nobody asked


def test_a_killed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reference_log_probs.json"
    ReferenceLogProbs({"a": -1.0}, ["forget"], "m").save(path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gru_fast.runs.files.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        ReferenceLogProbs({"a": -2.0}, ["forget"], "m").save(path)
    assert ReferenceLogProbs.load(path)._log_probs == {"a": -1.0}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", "{}", '{"format": 1, "model": "m", "parts": ["forget"]}', b"\xff\xfe\x00"]
)
def test_other_files_are_refused(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"some.json: expected a file of ReferenceLogProbs.save\(\)"):
        ReferenceLogProbs.load(path)


def test_missing_file_and_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(FileNotFoundError, match=r"r.json: no such file"):
        ReferenceLogProbs.load(path)
    path.write_text(json.dumps({"format": 2, "model": "m", "parts": [], "log_probs": {}}))
    with pytest.raises(ValueError, match=r"r.json: expected format 1, got 2; upgrade gru_fast"):
        ReferenceLogProbs.load(path)


def test_merge() -> None:
    model = llama()
    train, held_out = dataset(), UnlearnDataset([row(1, 20, 21)], idk=idk, seed=9)
    merged = compute(model, train, ["forget"]).merge(compute(model, held_out, ["forget", "idk"]))
    assert merged.parts == ("forget", "idk")
    assert len(merged) == 5
    assert FORGET[0] in merged
    assert row(1, 20, 21) in merged
    assert row(1, 20, 22) not in merged
    with pytest.raises(ValueError, match=r"^reference_log_probs: expected .* got those of another model"):
        merged.merge(compute(llama(seed=1), train, ["forget"]))


def test_repr() -> None:
    store = ReferenceLogProbs({"a": -1.0}, ["forget", "idk"], "0123456789abcdef")
    assert repr(store) == "ReferenceLogProbs(1 sequences, forget, idk, model 01234567)"


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprint_follows_the_weights() -> None:
    assert fingerprint(llama()) == fingerprint(llama())
    assert fingerprint(llama().eval()) == fingerprint(llama().train())
    different = {
        fingerprint(model)
        for model in (llama(), llama(seed=1), llama().to(torch.bfloat16), llama(tie_word_embeddings=True))
    }
    assert len(different) == 4


def test_fingerprint_notices_a_training_step() -> None:
    model = llama()
    before = fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert fingerprint(model) != before


def test_fingerprint_of_odd_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.empty = nn.Parameter(torch.empty(0))
            self.scalar = nn.Parameter(torch.tensor(1.0))
            self.strided = nn.Parameter(torch.arange(12.0).view(3, 4).t())

    assert len(fingerprint(Odd())) == 32


def test_fingerprint_leaves_new_adapters_out() -> None:
    """Their random half differs from process to process: a run could never read its own file again."""
    models = []
    for seed in (1, 2):
        base = llama()
        torch.manual_seed(seed)
        models.append(lora(base))
    first, second = (dict(model.named_parameters()) for model in models)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert fingerprint(models[0]) == fingerprint(models[1])
    with torch.no_grad():
        next(param for name, param in models[0].named_parameters() if "lora_B" in name).add_(0.1)
    assert fingerprint(models[0]) != fingerprint(models[1])


# ---- the reference model ---------------------------------------------------------------------------------------------


def collated() -> dict[str, Tensor]:
    return SequenceCollator(0)(FORGET)


def train_a_little(model: Any, steps: int = 2) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        model(**collated()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits_now(model: Any) -> Tensor:
    batch = collated()
    with frozen(model):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_reference_logits_stay_while_the_model_moves(tied: bool, offload: bool) -> None:
    model = llama(tie_word_embeddings=tied, attention_dropout=0.5).train()
    before = logits_now(model)
    reference = ReferenceModel(model, offload=offload)
    assert repr(reference).endswith(" on the host)") == offload
    assert reference.nbytes == sum(p.numel() * 4 for p in model.parameters())
    train_a_little(model)
    after = logits_now(model)
    assert not torch.allclose(before, after)
    got = reference.logits(collated())
    assert torch.equal(got, before)
    assert not got.requires_grad
    assert torch.equal(logits_now(model), after)  # the model has its own weights back
    assert all(module.training for module in model.modules())


def test_frozen_parameters_are_shared() -> None:
    model = llama()
    model.requires_grad_(requires_grad=False)
    model.lm_head.requires_grad_()
    before = logits_now(model)
    reference = ReferenceModel(model)
    assert reference.nbytes == model.lm_head.weight.numel() * 4
    train_a_little(model)
    assert torch.equal(reference.logits(collated()), before)


@pytest.mark.parametrize("offload", [False, True])
def test_reference_in_the_middle_of_a_graph(offload: bool) -> None:
    """Between a forward pass and its backward pass, as a trainer does, with checkpointing too."""

    def gradient(model: Any, reference: ReferenceModel | None) -> Tensor:
        loss = model(**collated(), use_cache=False).loss
        if reference is not None:
            reference.logits(collated())
        loss.backward()
        return model.model.layers[0].mlp.up_proj.weight.grad

    for checkpointing in (False, True):
        model = llama().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        reference = ReferenceModel(model, offload=offload)
        with torch.no_grad():
            for param in model.parameters():
                param.mul_(1.5)
        expected = gradient(model, None).clone()
        model.zero_grad()
        assert torch.equal(gradient(model, reference), expected)


def test_an_offloaded_reference_keeps_its_own_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a large vocabulary is compared in blocks, after the weights have been exchanged back."""
    monkeypatch.setattr(head, "SMALL_LOGITS", 0)
    found = []
    for offload in (False, True):
        model = llama()
        reference = ReferenceModel(model, offload=offload)
        train_a_little(model)
        states = reference.to_compare(collated())
        assert isinstance(states, head.HiddenStates)
        found.append(head.divergence_of(model, collated(), states))
    assert found[0].item() > 0.01
    assert torch.equal(found[0], found[1])


def test_new_adapters_are_switched_off_without_a_copy() -> None:
    base = llama()
    before = logits_now(base)
    model = lora(base, lora_dropout=0.5).train()
    reference = ReferenceModel(model)
    assert reference.nbytes == 0
    assert repr(reference) == "ReferenceModel(PeftModelForCausalLM, adapters off)"
    train_a_little(model)
    after = logits_now(model)
    assert not torch.allclose(after, before)
    assert torch.equal(reference.logits(collated()), before)
    assert torch.equal(logits_now(model), after)  # adapters are on again


def test_adapters_that_were_trained_before_are_part_of_the_reference() -> None:
    """A LoRA-tuned target that is unlearned through the same adapters: its reference is not the bare base."""
    base = llama()
    bare = logits_now(base)
    model = lora(base)
    train_a_little(model)
    tuned = logits_now(model)
    reference = ReferenceModel(model)
    assert 0 < reference.nbytes == sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    train_a_little(model)
    got = reference.logits(collated())
    torch.testing.assert_close(got, tuned, rtol=0, atol=0)
    assert not torch.allclose(got, bare)


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"use_dora": True}, True),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"bias": "all"}, True),
        ({"target_modules": ["embed_tokens"]}, False),  # there it is A that starts from 0
        ({"use_rslora": True}, False),
        ({"init_lora_weights": "pissa"}, True),  # which moves part of the base into the adapters
    ],
)
def test_other_adapters_too(options: dict[str, Any], copies: bool) -> None:
    model = lora(llama(attention_bias=True), **options)
    before = logits_now(model)
    reference = ReferenceModel(model)
    assert (reference.nbytes > 0) == copies
    train_a_little(model)
    assert not torch.allclose(logits_now(model), before, atol=1e-4)
    torch.testing.assert_close(reference.logits(collated()), before, rtol=1e-5, atol=1e-5)


def test_reference_runs_under_the_callers_autocast() -> None:
    model = llama()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits_now(model)
        assert torch.equal(ReferenceModel(model).logits(collated()), expected)
    assert not torch.equal(ReferenceModel(model).logits(collated()), expected)


# ---- KL --------------------------------------------------------------------------------------------------------------


def test_kl_by_hand() -> None:
    reference = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log()
    current = torch.tensor([[[0.25, 0.75], [0.9, 0.1]]]).log() + 5.0
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # KL(ref, current), not the other way round
    assert kl_divergence(current, reference).item() == pytest.approx(first / 2, rel=1e-5)
    assert kl_divergence(current, reference, torch.tensor([[1, 0]])).item() == pytest.approx(first, rel=1e-5)
    assert kl_divergence(current, reference, torch.tensor([[False, True]])).item() == pytest.approx(0, abs=1e-6)


def test_kl_and_its_gradient_against_torch_distributions() -> None:
    reference = torch.randn(2, 5, 7, dtype=torch.float64)
    current = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    each = exact_kl(Categorical(logits=reference), Categorical(logits=current))
    for positions, expected in ((None, each.mean()), (mask, (each * mask).sum() / 6)):
        loss = kl_divergence(current, reference, positions)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        got, wanted = (torch.autograd.grad(value, current, retain_graph=True)[0] for value in (loss, expected))
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-15)


def test_kl_counts_prompt_and_padding_by_default() -> None:
    """As the sources do: a batch padded to twice its length has half the divergence, if padding agrees."""
    reference, current = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    agreeing = torch.randn(2, 4, 7)
    wide = kl_divergence(torch.cat([current, agreeing], 1), torch.cat([reference, agreeing], 1))
    torch.testing.assert_close(wide, kl_divergence(current, reference) / 2)
    positions = torch.cat([torch.ones(2, 4), torch.zeros(2, 4)], 1)
    masked = kl_divergence(torch.cat([current, agreeing], 1), torch.cat([reference, agreeing], 1), positions)
    torch.testing.assert_close(masked, kl_divergence(current, reference))


def test_kl_takes_16_bit_logits_in_float32() -> None:
    reference, current = torch.randn(1, 2, 5000).bfloat16(), torch.randn(1, 2, 5000).bfloat16()
    got = kl_divergence(current, reference)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), kl_divergence(current.double(), reference.double()), rtol=1e-5, atol=0)


def test_kl_lets_no_gradient_into_the_reference() -> None:
    reference = torch.randn(1, 2, 3, requires_grad=True)
    current = torch.randn(1, 2, 3, requires_grad=True)
    kl_divergence(current, reference).backward()
    assert reference.grad is None
    assert current.grad is not None


def test_kl_shapes() -> None:
    with pytest.raises(ValueError, match=r"^reference_logits: expected shape \(1, 2, 3\) as logits, got \(1, 2, 4\)"):
        kl_divergence(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"^positions: expected shape \(1, 2\), got \(2, 1\)"):
        kl_divergence(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(2, 1))


def test_kl_of_model_and_reference_is_zero_before_training_and_rises() -> None:
    model = llama().train()
    reference = ReferenceModel(model)
    batch = collated()
    assert kl_divergence(model(**batch).logits, reference.logits(batch)).item() == pytest.approx(0, abs=1e-6)
    train_a_little(model)
    assert kl_divergence(model(**batch).logits, reference.logits(batch)).item() > 0.01
