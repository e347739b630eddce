"""bench/: shapes, every form against the float64 oracle, the timer, and the scripts from end to end on small inputs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"
_MODULES = (
    "baselines", "forms", "loss_memory", "memory", "expected", "problem", "profile_step", "report", "rules_time",
    "sanitizer_cases", "optim_time", "shapes", "timing", "user_step", "vector_time",
)  # fmt: skip
PAIRS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
]
EAGER_FORMS = ["gru_fast", "official", "eager", "foreach", "foreach-sync", "flat-blocked", "reference"]
COMPILED_FORMS = ["compile-lists", "compile-lists-sync", "flat-compile", "flat-autotune", "flat-compile-sync"]


@pytest.fixture(scope="module")
def bench() -> Any:
    """The modules of bench/, as its scripts see them: the folder comes first on the path."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCH))
    try:
        modules = {name: importlib.import_module(name) for name in _MODULES}
    finally:
        sys.path[:] = before
    return type("Bench", (), modules)


def make_problem(bench: Any, grad: torch.dtype, ema: torch.dtype, shapes: list[tuple[int, ...]] | None = None) -> Any:
    shapes = shapes or [(7,), (64, 33), (1,), (4096,), (513, 3)]
    return bench.problem.Problem(shapes, grad, ema, torch.device("cpu"))


def make_form(bench: Any, name: str, problem: Any) -> Any:
    forms = {**bench.baselines.BASELINES, "gru_fast": bench.forms.GruFast}
    return forms[name](problem)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_model_totals(bench: Any) -> None:
    known = {
        "gpt2-124m": (148, 124_439_808),
        "smollm2-135m": (272, 134_515_008),
        "phi-1.5": (341, 1_418_270_720),
        "llama2-7b": (291, 6_738_415_616),
        "llama-3.2-1b": (146, 1_235_814_400),
        "qwen2.5-0.5b": (290, 494_032_768),
    }
    for name in bench.shapes.MODELS:  # shapes_of checks each against its entry
        found = bench.shapes.shapes_of(name)
        assert known.get(name, (len(found), bench.shapes.count(found))) == (len(found), bench.shapes.count(found))
    assert known.keys() <= bench.shapes.MODELS.keys()


@pytest.mark.parametrize(("tensors", "numel"), [(1, 1), (8, 100_000), (3, 10), (10_000, 10_000), (7, 1000)])
def test_custom_shapes(bench: Any, tensors: int, numel: int) -> None:
    shapes = bench.shapes.custom(tensors, numel)
    assert (len(shapes), bench.shapes.count(shapes)) == (tensors, numel)
    assert all(size > 0 for (size,) in shapes)


def test_shape_errors(bench: Any) -> None:
    with pytest.raises(ValueError, match="no shapes for 'gpt5'; there are gpt2-124m"):
        bench.shapes.shapes_of("gpt5")
    with pytest.raises(ValueError, match="tensors=5, numel=4"):
        bench.shapes.custom(5, 4)


# ---- the problem and the oracle --------------------------------------------------------------------------------------


def test_bytes_moved(bench: Any) -> None:
    """Counted by hand: 4 accesses without conflict, 7 with."""
    problem = make_problem(bench, torch.bfloat16, torch.float32, [(100,)])
    problem.set_case("none", 1.0)
    assert problem.bytes_moved() == 100 * (2 + 2 + 4 + 4)
    problem.set_case("full", 1.0)
    assert problem.bytes_moved() == 100 * (2 + 2 + 4 + 4 + 2 + 4 + 2)


def test_fill_repeats_the_tile(bench: Any) -> None:
    flat = torch.empty(7)
    bench.problem.fill(flat, torch.tensor([1.0, 2.0, 3.0]))
    assert flat.tolist() == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("case", ["full", "none"])
def test_oracle_is_the_formula(bench: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two and a half periods, against the formula on the whole vectors."""
    monkeypatch.setattr(bench.problem, "_PERIOD", 400)
    problem = make_problem(bench, torch.float32, torch.float32, [(1000,)])
    answer = bench.expected.start(problem, case)
    g, r, e = problem.flat_grad.double(), problem.flat_retain.double(), problem.flat_ema.double()
    e = 0.8 * e + 0.2 * r
    assert (g @ e < 0) == (case == "full")
    if case == "full":
        g = g - (g @ e) / (e @ e) * e
        assert g.norm() == pytest.approx(2 * answer.tau)
        g = g / 2
    assert torch.allclose(g[:400], answer.grad, rtol=1e-12, atol=1e-15)
    assert torch.allclose(e[800:], answer.ema[:200], rtol=1e-12, atol=1e-15)


def test_oracle_notices(bench: Any) -> None:
    """A result that is off anywhere is complained about, and the culprit named."""
    problem = make_problem(bench, torch.float32, torch.float32)
    answer = bench.expected.start(problem, "full")
    bench.forms.GruFast(problem).step()
    grad, ema = problem.flat_grad.clone(), problem.flat_ema.clone()
    assert bench.expected.compare(problem, answer, grad, ema).complaint(problem) is None
    grad[17] += 0.01
    assert "g is off by" in bench.expected.compare(problem, answer, grad, ema).complaint(problem)
    ema[-1] = 1.0
    assert "e is off by" in bench.expected.compare(problem, answer, grad, ema).complaint(problem)


@pytest.mark.parametrize(
    ("exact", "got", "ulps"),
    [
        # Float32 arithmetic carries it to 1, from where the next bfloat16 is 2^-7 away: one unit there.
        (1 - 2.0**-30, 1 + 2.0**-7, 1.0),
        (1 - 2.0**-30, 1 + 2.0**-6, 2.0),
        (1 - 2.0**-20, 1 + 2.0**-7, 2.0),  # too far below 1 for that
        (1.5, 1.5 - 2.0**-7, 1.0),
    ],
)
def test_units_of_rounding(bench: Any, exact: float, got: float, ulps: float) -> None:
    found, _ = bench.expected._rounding(
        torch.tensor([got], dtype=torch.bfloat16), torch.tensor([exact], dtype=torch.float64)
    )
    assert found == pytest.approx(ulps, rel=1e-3)


def test_oracle_notices_biased_rounding(bench: Any) -> None:
    """Rounding to nearest passes; cutting off does not."""
    problem = make_problem(bench, torch.bfloat16, torch.bfloat16, [(20_000,)])
    answer = bench.expected.start(problem, "full")
    nearest = answer.ema.to(torch.bfloat16)
    cut = (answer.ema.float().view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)
    grad = answer.grad.to(torch.bfloat16)
    good, bad = (bench.expected.compare(problem, answer, grad, e, stochastic=True) for e in (nearest, cut))
    assert good.complaint(problem) is None
    assert bad.ema_bias < -6
    assert "biased" in bad.complaint(problem)


# ---- the forms -------------------------------------------------------------------------------------------------------


def check_both_cases(bench: Any, problem: Any, form: Any) -> None:
    for case in ("full", "none"):
        answer = bench.expected.start(problem, case)
        form.reset()
        before = problem.flat_grad.clone()
        form.step()
        grad, ema = form.result()
        accuracy = bench.expected.compare(problem, answer, grad, ema, stochastic=form.stochastic)
        assert accuracy.complaint(problem) is None, f"{form.name}, {case}"
        assert torch.equal(grad, before) == (case == "none")


@pytest.mark.parametrize(("grad", "ema"), PAIRS, ids=str)
@pytest.mark.parametrize("name", EAGER_FORMS)
def test_form_is_right(bench: Any, name: str, grad: torch.dtype, ema: torch.dtype) -> None:
    problem = make_problem(bench, grad, ema)
    check_both_cases(bench, problem, make_form(bench, name, problem))


@pytest.mark.slow
@pytest.mark.filterwarnings("default::DeprecationWarning")  # raised inside torch while it compiles
@pytest.mark.parametrize("name", COMPILED_FORMS)
def test_compiled_form_is_right(bench: Any, name: str) -> None:
    for grad, ema in PAIRS[:3]:
        problem = make_problem(bench, grad, ema)
        check_both_cases(bench, problem, make_form(bench, name, problem))


def test_every_form_is_tested(bench: Any) -> None:
    assert {*EAGER_FORMS, *COMPILED_FORMS} == {"gru_fast", *bench.baselines.BASELINES}


def test_blocks_change_nothing(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over several blocks of a tensor."""
    monkeypatch.setattr(bench.baselines, "sum_numel", lambda problem: 100)
    for name in ("eager", "flat-blocked", "foreach-sync"):
        problem = make_problem(bench, torch.float32, torch.float32)
        check_both_cases(bench, problem, make_form(bench, name, problem))


def test_probe_changes_nothing(bench: Any) -> None:
    problem = make_problem(bench, torch.bfloat16, torch.float32)
    probe = bench.forms.Probe(problem)
    for case in ("full", "none"):
        bench.expected.start(problem, case)
        before = [x.clone() for x in (problem.flat_grad, problem.flat_retain, problem.flat_ema)]
        probe.step()
        assert all(map(torch.equal, before, (problem.flat_grad, problem.flat_retain, problem.flat_ema)))


# ---- timing and memory -----------------------------------------------------------------------------------------------


class FakeClock:
    """Every call takes the next of `seconds`."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = iter(seconds)

    def time(self, calls: list[Any]) -> tuple[list[float], list[float]]:
        for call in calls:
            call()
        took = [next(self.seconds) for _ in calls]
        return took, took


def test_sample_is_probe_form_probe(bench: Any) -> None:
    log: list[str] = []
    samples = bench.timing.measure(
        {"form": lambda: log.append("form")},
        lambda: log.append("probe"),
        lambda: log.append("restore"),
        FakeClock(1.0, 3.0, 2.0, 2.0, 4.0, 2.0),
        budget=1e9,
        rounds=2,
    )["form"]
    assert log == ["restore", "probe", "form", "probe"] * 2
    assert samples.ratios() == [2.0, 2.0]
    assert samples.seconds == [3.0, 4.0]


def test_budget_gives_every_form_one_sample(bench: Any) -> None:
    steps = {name: lambda: None for name in "abc"}
    samples = bench.timing.measure(steps, lambda: None, lambda: None, bench.timing.CpuClock(), budget=0.0, rounds=9)
    assert [len(samples[name]) for name in "abc"] == [1, 1, 1]


def test_peak_extra_sees_a_temporary(bench: Any) -> None:
    def call() -> None:
        torch.ones(1 << 24)

    peak = bench.memory.peak_extra(call, torch.device("cpu"))
    if peak is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert 60e6 < peak < 80e6


# ---- the scripts -----------------------------------------------------------------------------------------------------


def run_script(name: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCH / name), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""  # progress goes to terminals only
    return done.stdout


def test_step_time_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    out = run_script(
        "step_time.py", "--tensors", "8", "--numel", "100000", "--rounds", "2", "--no-compile", "--json", str(path)
    )
    stored = json.loads(path.read_text())
    cells = [(cell["grad_dtype"], cell["case"]) for cell in stored["cells"]]
    assert cells == [("float32", "full"), ("float32", "none"), ("bfloat16", "full"), ("bfloat16", "none")]
    for cell in stored["cells"]:
        names = {form["name"] for form in cell["forms"]}
        assert names == {"gru_fast", "official", "eager", "foreach", "foreach-sync", "flat-blocked"}
        assert cell["left_out"]["flat-compile"] == "--no-compile"
        assert all(1 <= form["samples"] <= 2 and form["complaint"] is None for form in cell["forms"])
    assert stored["about"]["torch"] == torch.__version__
    assert "fastest PyTorch form" in out


def test_optim_time_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    printed = run_script("optim_time.py", "--tensors", "8", "--numel", "100000", "--rounds", "2", "--json", str(path))
    found = {record["form"]: record for record in json.loads(path.read_text())["results"]}
    assert {record["bytes"] for record in found.values()} == {56, 48, 64, 24, 32}
    assert "both / rectify_, AdamW(fused): " in printed


def test_optim_time_sees_a_wrong_form(bench: Any) -> None:
    optim = bench.optim_time
    gradients = optim.Gradients(torch.float32, [(64, 33), (7,)], torch.device("cpu"))
    right, wrong = optim.Step(optim.FORMS[2], gradients), optim.Step(optim.FORMS[2], gradients)
    assert optim.error_of(right) < 1e-3
    wrong.optimizer.param_groups[0]["lr"] *= 1.01
    assert optim.error_of(wrong) > 5e-3


def test_rules_time_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    out = run_script(
        "rules_time.py", "--tensors", "8", "--numel", "20000", "--rounds", "1", "--budget", "1", "--json", str(path)
    )
    stored = json.loads(path.read_text())
    assert {form["rule"] for form in stored["forms"]} >= {"a_gem", "pcgrad sum", "sago prefer_retain", "hamu q"}
    assert all(form["samples"] == 1 and form["complaint"] is None for form in stored["forms"])
    assert "| gru_fast pcgrad one_sided by tensor |" in out


def test_rules_time_takes_a_peers_class_and_sees_a_wrong_form(bench: Any, tmp_path: Path) -> None:
    """A class of that name, from a file whose imports do not matter."""
    path = tmp_path / "grad_surgery.py"
    path.write_text(
        "import no_such_package\n\n\nclass GradSurgeryMixin:\n"
        "    def _combine_grads(self, forget, retain):\n        return [f + r for f, r in zip(forget, retain)]\n"
    )
    problem = bench.problem.Problem([(64, 33), (7,)], torch.float32, torch.float32, torch.device("cpu"))
    found = {form.name: bench.rules_time.check(form, problem) for form in bench.rules_time.sago(problem, path)}
    assert all(complaint and "of its norm" in complaint for complaint in found.values())
    path.write_text("x = 1\n")
    with pytest.raises(SystemExit, match="found no class GradSurgeryMixin"):
        bench.rules_time.sago(problem, path)
    with pytest.raises(SystemExit, match="expected one of the repositories SAGO, HAMU, GRU in it"):
        bench.rules_time.of_repositories(problem, tmp_path)


def test_rules_time_takes_the_papers_class(bench: Any, tmp_path: Path) -> None:
    """A trainer of the same methods, whose projection is right or forgotten."""
    (tmp_path / "GRU").mkdir()
    path = tmp_path / "GRU" / "dataloader_faster_refactor1.py"
    source = """
import no_such_package

class CustomTrainerForgetting(no_such_package.Trainer):
    def store_grads(self, model, loss=None, typ=None):
        {"retain": self.memory_grad, "objective": self.gradient_accum}[typ].update(
            {name: param.grad for name, param in model.named_parameters()}
        )

    def flatten_and_store_grads(self):
        self.structure_map = [(name, grad.shape) for name, grad in self.gradient_accum.items()]
        self.flattened_gradient = torch.cat([grad.flatten() for grad in self.gradient_accum.values()])
        self.flattened_memory_accumulation = torch.cat([grad.flatten() for grad in self.memory_grad.values()])

    def compute_total_gradient_dot_product(self, a, _, b, __):
        return float(a.to("cuda") @ b)

    def pipeline(self, model):
        print(self.dotp_retain)
        if self.dotp_retain < 0:
            e = self.flattened_memory
            self.flattened_gradient = self.flattened_gradient - self.dotp_retain / (e @ e) * e

    def restore_gradients_from_flat(self, model):
        sizes = [np.prod(shape) for _, shape in self.structure_map]
        parts = self.flattened_gradient.split([int(size) for size in sizes])
        for param, part in zip(model.parameters(), parts, strict=True):
            param.grad = part.view(param.shape)
"""
    path.write_text(source)
    problem = bench.problem.Problem([(64, 33), (7,)], torch.float32, torch.float32, torch.device("cpu"))

    def complaint() -> str | None:
        problem.reset_grad()
        (form,) = bench.rules_time.of_repositories(problem, tmp_path)
        form.reset()
        return bench.rules_time.check(form, problem)  # type: ignore[no-any-return]

    assert complaint() is None
    path.write_text(source.replace("if self.dotp_retain < 0:", "if False:"))
    assert "of its norm" in (complaint() or "")


def test_vector_time_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    out = run_script(
        "vector_time.py", "--tensors", "8", "--numel", "100000", "--rounds", "2", "--no-compile", "--json", str(path)
    )
    stored = json.loads(path.read_text())
    assert list(stored["results"]) == ["float32", "bfloat16"]
    for records in stored["results"].values():
        assert [record["form"] for record in records] == ["gru_fast", "foreach", "loop"]
        assert all(1 <= record["samples"] <= 2 and record["error"] < 1e-4 for record in records)
    assert "### custom, bfloat16: 8 tensors, 100,000 parameters" in out


def test_vector_time_sees_a_wrong_form(bench: Any) -> None:
    problem = bench.vector_time.Problem([(64, 33), (7,)], torch.float32, torch.device("cpu"))
    answer = problem.expected()
    form = bench.vector_time.GruFast(problem)
    assert bench.vector_time.error_of(form, answer) < 1e-6
    assert bench.vector_time.error_of(form, -answer) > 1.0
    form.step = lambda: None
    with pytest.raises(SystemExit, match="the parameters are not theta_org again"):
        bench.vector_time.error_of(form, answer)


def test_step_time_skips_what_does_not_fit() -> None:
    out = run_script("step_time.py", "--tensors", "1", "--numel", str(10**13), "--dtype", "float32")
    assert "skipped, needs 132000.0 GB" in out


def test_scaling_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    out = run_script(
        "scaling.py",
        "--numel",
        "10000",
        "--tensors",
        "1",
        "50",
        "--total",
        "20000",
        "--rounds",
        "2",
        "--no-compile",
        "--json",
        str(path),
    )
    stored = json.loads(path.read_text())
    assert [(point["tensors"], point["numel"]) for point in stored["points"]] == [(300, 10000), (1, 20000), (50, 20000)]
    assert all(part["us"] > 0 for part in stored["fixed_cost"][:-1])
    assert "Fixed cost of a step" in out


def test_sanitizer_cases_are_right(bench: Any) -> None:
    cases = bench.sanitizer_cases.cases(torch.device("cpu"))
    complaints = {case.name: bench.sanitizer_cases.run(case) for case in cases}
    assert len(complaints) >= 20
    assert {name: text for name, text in complaints.items() if text} == {}
    vectors = dict(bench.sanitizer_cases.vector_cases(torch.device("cpu")))
    assert len(vectors) == 5 * 4 + 1 + 3
    assert {name: text for name, text in vectors.items() if text} == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_user_step_end_to_end(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "out.json"
    out = run_script(
        "user_step.py", "--models", "tiny", "--batch-size", "2", "--length", "16", "--rounds", "2", "--dtype", dtype,
        "--ema-dtype", dtype, "--json", str(path),
    )  # fmt: skip
    records = json.loads(path.read_text())["results"]["tiny"]
    assert [record["variant"] for record in records] == ["plain", "collect", "stream", "foreach", "foreach-sync"]
    assert all(record["samples"] == 2 and 0 < record["rectify_seconds"] < record["seconds"] for record in records)
    assert [record["ema_bytes"] > 0 for record in records] == [False, True, True, True, True]
    assert all(record["error"] < (1e-6 if dtype == "float32" else 5e-3) for record in records[1:])
    assert f"### tiny, {dtype}, {dtype} EMA: twice 2 rows of 16 tokens" in out


def test_user_step_sees_a_wrong_variant(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = bench.user_step.parse(["--batch-size", "2", "--length", "16"])
    setting = bench.user_step.Setting("tiny", options)
    collect = bench.user_step.Collect(setting)
    monkeypatch.setattr(collect, "rectify", lambda: None)
    with pytest.raises(SystemExit, match="collect is off by"):
        bench.user_step.check([collect], setting)


def test_profile_step_end_to_end(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.profile_step.main(["--steps", "2"]) == 0
    assert "waits for the device: none" in capsys.readouterr().out


def test_profile_step_sees_what_waits(bench: Any) -> None:
    calls = ["cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaMemcpyAsync", "aten::item"]
    assert bench.profile_step.waiting_calls(calls) == {"cudaStreamSynchronize": 1}


def test_results_page_is_that_of_the_study() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra [unlearn]")
    run = subprocess.run(
        [sys.executable, str(BENCH / "readme_results.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(("name", "least"), [("tofu-tiny", 20), ("tofu-smollm2-cpu", 15)])
def test_the_studys_report_is_that_of_its_results(tmp_path: Path, name: str, least: int) -> None:
    """Its texts, that is: a figure's bytes depend on the versions of matplotlib and of fonts."""
    pytest.importorskip("matplotlib", reason="needs the extra [unlearn]")
    from gru_fast.study import report, results

    kept = BENCH / "results" / name
    report.write(results.read(kept), tmp_path)
    texts = ["report.md", *(str(path.relative_to(kept)) for path in sorted(kept.glob("tables/*")))]
    assert len(texts) > least
    for text in texts:
        assert (tmp_path / text).read_text() == (kept / text).read_text(), text


@pytest.mark.parametrize("loss", ["nll", "npo", "kl"])
def test_loss_memory_compares_two_ways(bench: Any, loss: str) -> None:
    args = bench.loss_memory.parsed(
        ["--rows", "2", "--tokens", "8", "--vocabulary", "2000", "--features", "16", "--repeats", "1", "--losses", loss]
    )
    bench.loss_memory.check(args)
    assert all(spent > 0 for spent in bench.loss_memory.seconds(args, loss).values())


def test_loss_memory_sees_a_wrong_way(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    args = bench.loss_memory.parsed(["--rows", "2", "--tokens", "8", "--vocabulary", "2000", "--losses", "nll"])
    exact = bench.loss_memory.loss_of
    blocks = bench.loss_memory.head

    def off(*given: Any) -> Any:
        return exact(*given) * (1.0 if blocks.SMALL_LOGITS else 1.01)

    monkeypatch.setattr(bench.loss_memory, "loss_of", off)
    with pytest.raises(AssertionError, match=r"nll: the gradients of both ways are 0\.01 of their norm apart"):
        bench.loss_memory.check(args)
