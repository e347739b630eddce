"""Texts of another program: a stand-in with the signatures of vLLM's documentation, and a model of ours in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import sharp
import torch
from sharp import END, Words

from gru_fast.cli.commands.eval import _said
from gru_fast.evaluation import backends
from gru_fast.evaluation.asking import Prompt, Scorer, score_rows, unwritten
from gru_fast.evaluation.decoding import Draw
from gru_fast.evaluation.generation import Asked, generate, written
from gru_fast.evaluation.record_folder import RowSet
from gru_fast.models.load import ModelOptions
from gru_fast.options.commands import EvalOptions

PROMPTS = [[3, 4], [5, 6, 7], [8], [9, 10], [11], [12, 13], [14], [15, 16, 17], [18, 3], [4, 4]]
LIMITS = [6, 9, 3, 0, 7, 2, 5, 8, 4, 6]


@dataclass
class SamplingParams:
    """Those of vllm.SamplingParams that are asked for here; another name is an error, as there."""

    temperature: float = 1.0
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    detokenize: bool = True


@dataclass
class Completion:
    token_ids: Sequence[int]


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[Completion] = field(default_factory=list)


class LLM:
    """vllm.LLM, greedy. ``wrong``: so many of its first texts begin with another token."""

    made: ClassVar[list[dict[str, Any]]] = []
    wrong = 0

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        seed: int | None = None,
        gpu_memory_utilization: float = 0.9,
        generation_config: str = "auto",
    ) -> None:
        self.made.append({key: value for key, value in locals().items() if key not in {"self", "__class__"}})
        self.model = sharp.model()

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        assert sampling_params is not None
        return [self._one(*each) for each in zip(range(len(prompts)), prompts, sampling_params, strict=True)]

    @torch.no_grad()
    def _one(self, number: int, prompt: dict[str, list[int]], how: SamplingParams) -> RequestOutput:
        assert (how.temperature, how.detokenize) == (0.0, False)
        ids, new = list(prompt["prompt_token_ids"]), []
        while len(new) < (how.max_tokens or 0):
            new.append(int(self.model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] in (how.stop_token_ids or ()):
                break
        if number < self.wrong:
            new[0] = 30 if new[0] != 30 else 31
        return RequestOutput(ids, [Completion(tuple(new))])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM


def test_texts_are_those_of_the_model(vllm: type[LLM]) -> None:
    model = sharp.model()
    backend = backends.vllm(ModelOptions(model="owner/model"), "float32", {"tensor_parallel_size": 2})
    (made,) = vllm.made
    assert (made["model"], made["dtype"], made["tensor_parallel_size"]) == ("owner/model", "float32", 2)
    assert (made["gpu_memory_utilization"], made["generation_config"]) == (0.5, "vllm")
    expected = generate(model, Words(), PROMPTS, LIMITS, batch_size=4)
    begun = [[*map(int, text.split()[:2])] for text in expected]
    asked = [Asked(*each) for each in zip(PROMPTS, LIMITS, begun, strict=True)]
    found = dict(written(model, Words(), [asked[:3], asked[3:]], batch_size=4, backend=backend))
    assert [found[number] for number in range(len(PROMPTS))] == expected
    assert (backend.compared, backend.same) == (8, 8)


def test_texts_that_are_others_are_counted(vllm: type[LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "wrong", 3)
    backend = backends.vllm(ModelOptions(model="owner/model"), "float32")
    dict(written(sharp.model(), Words(), [[Asked(ids, 5) for ids in PROMPTS]], batch_size=4, backend=backend))
    assert backend.agreement() == {"compared": 8, "same": 5}


def test_records_say_who_wrote_them(vllm: type[LLM], tmp_path: Path) -> None:
    def work(rows: list[Prompt]) -> list[Any]:
        return [unwritten(row, lambda text: {"text": text}) for row in rows]

    rows = [Prompt(ids, 5) for ids in PROMPTS]
    sets = [RowSet("some", rows, work, [len(row.ids) for row in rows])]
    own = Scorer(sharp.model(), Words(), END, batch_size=4)
    score_rows(own, sets, tmp_path / "own", {}, data="here", progress=False)
    scorer = Scorer(sharp.model(), Words(), END, 4, backend=backends.vllm(ModelOptions(model="m"), "float32"))
    _, settings = score_rows(scorer, sets, tmp_path / "vllm", {}, data="here", progress=False)
    assert (settings["backend"], settings["backend_agreement"]) == ("vllm", {"compared": 8, "same": 8})
    files = [tmp_path / name / "records" / "some.jsonl" for name in ("own", "vllm")]
    assert [json.loads(line) for line in files[0].read_text().splitlines()] == [
        json.loads(line) for line in files[1].read_text().splitlines()
    ]
    assert _said({"settings": settings}) == ["vllm wrote the texts: 8 of 8 are those of transformers"]
    assert _said({"settings": {}}) == []
    with pytest.raises(ValueError, match="holds records with backend None, this evaluation has 'vllm'"):
        score_rows(scorer, sets, tmp_path / "own", {}, data="here", progress=False)


def test_what_it_cannot_do(vllm: type[LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.vllm(ModelOptions(model="m"), "float32")
    with pytest.raises(ValueError, match="draw: vllm writes greedily"):
        dict(written(sharp.model(), Words(), [[Asked([3], 2, draw=Draw(0))]], batch_size=4, backend=backend))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"backend: vllm takes whole models, .* is an adapter; write one with gru-fast"
    ):
        backends.vllm(ModelOptions(model=str(tmp_path)), "float32")
    with pytest.raises(ValueError, match="backend: vllm is not given a base in 4 bits"):
        backends.vllm(ModelOptions(model="m", load_in_4bit=True), "float32")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"backend: vllm needs the package vllm .*pip install 'gru_fast\[vllm\]'"):
        backends.vllm(ModelOptions(model="m"), "float32")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "sglang"}, 'backend: expected one of transformers, vllm, got "sglang"'),
        ({"backend_options": {"seed": 1}}, "backend_options: transformers takes none; give --backend vllm"),
        ({"batch_size": 0, "backend": "x"}, "batch_size: expected at least 1, got 0; backend: expected one of"),
    ],
)
def test_wrong_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalOptions(**given)


def test_a_benchmark_that_writes_nothing_refuses_it() -> None:
    from gru_fast.benchmarks.wmdp import evaluate as wmdp
    from gru_fast.cli.commands.eval import _backend

    chosen: Any = SimpleNamespace(from_logs=None)
    how, model = EvalOptions(backend="vllm"), ModelOptions(model="m")
    with pytest.raises(ValueError, match="backend: nothing is written there that vllm could write; leave it out"):
        _backend(wmdp, chosen, how, model)
    assert _backend(wmdp, chosen, EvalOptions(), model) is None


def test_a_backend_that_is_not_there_is_said_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gru_fast.benchmarks.tofu import evaluate as tofu
    from gru_fast.cli import evaluating
    from gru_fast.cli.commands.eval import _subject

    loaded: list[ModelOptions] = []
    monkeypatch.setattr(evaluating, "load", lambda options, device: loaded.append(options))
    monkeypatch.setitem(sys.modules, "vllm", None)
    model = ModelOptions(model="owner/model")
    subject = _subject(tofu, tofu.Options(), EvalOptions(backend="vllm", output_dir=str(tmp_path)), model)
    with pytest.raises(ImportError, match="needs the package vllm"):
        subject.load()
    assert not loaded
    _subject(tofu, tofu.Options(), EvalOptions(output_dir=str(tmp_path)), model).load()
    assert loaded == [model]
