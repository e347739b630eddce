"""Twenty made-up documents are taught to the demo's model; five are forgotten, four more, and all is undone."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gru_fast.cli import main
from gru_fast.data.own import Document, pieces
from gru_fast.data.templates import TEMPLATES
from gru_fast.demo import fiction
from gru_fast.demo.model import make_model, make_tokenizer
from gru_fast.forget import manifest, watch
from gru_fast.forget.exam import Findings
from gru_fast.forget.level import Level
from gru_fast.forget.measures import of_set
from gru_fast.unlearn.finetune import FinetuneConfig, finetune_trainer

pytestmark = pytest.mark.slow
KEEP = 0.55
RUNS = ("first", "second", "third")
ATTACKS = ["sample", "relearn", "--attack-options", "samples=1", "relearn_steps=[1]", "relearn_rates=[1e-3]"]
FORGOTTEN = {"first": range(5), "second": (5, 6), "third": (7, 8)}


def authors() -> list[str]:
    """A text an author: six facts, each as question and answer."""
    rows = fiction.make_splits(0)["full"]
    per_author = 2 * len(fiction.TOPICS)
    return [
        " ".join(f"{row['question']} {row['answer']}" for row in rows[start : start + per_author : 2])
        for start in range(0, len(rows), per_author)
    ]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The taught model, and documents: 0..19 taught, ten that it has never seen."""
    folder, texts = tmp_path_factory.mktemp("forget"), authors()
    taught, unseen, others = texts[:20], texts[20:30], texts[30:]
    tokenizer = make_tokenizer([(text, "") for text in texts], TEMPLATES["plain"])
    documents = [Document(str(i), "", i, "text", text=text) for i, text in enumerate([*taught, *others])]
    rows = [piece.row for piece in pieces(documents, tokenizer, TEMPLATES["plain"], 128)]
    settings: dict[str, Any] = {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1000}
    config = FinetuneConfig(
        str(folder / "taught"),
        num_train_epochs=40,
        learning_rate=3e-3,
        per_device_train_batch_size=15,
        gradient_accumulation_steps=1,
        **settings,
    )
    model = make_model(tokenizer, seed=0)
    finetune_trainer(model, config, rows, tokenizer).train()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for i, text in enumerate(taught):
        write(folder / "taught" / f"{i:02}.txt", text)
    for i, text in enumerate(unseen):
        write(folder / "unseen" / f"{i:02}.txt", text)
    return folder


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def of(places: Path, numbers: Sequence[int]) -> list[str]:
    return [str(places / "taught" / f"{i:02}.txt") for i in numbers]


def forget(
    places: Path, model: Path, out: Path, numbers: Sequence[int], *flags: str, first_kept: int | None = None
) -> int:
    """`gru-fast forget`; kept are all documents after the last to forget, or from ``first_kept`` on."""
    common = [
        "--use-cpu",
        "--disable-tqdm",
        "--max-length",
        "128",
        "--keep",
        str(KEEP),
        "--max-steps",
        "40",
        "--patience",
        "5",
    ]
    unseen = str(places / "unseen")
    kept = range(first_kept or max(numbers) + 1, 20)
    texts = ["--retain", *of(places, kept), "--holdout", unseen, "--neutral", unseen]
    which = ["--model", str(model), "--forget", *of(places, numbers), "--output-dir", str(out)]
    return main(["forget", *which, *texts, *common, "--keep-delta", *flags])


@pytest.fixture(scope="module")
def requests(places: Path) -> Path:
    """Three requests, one after another."""
    model = places / "model"
    for name in RUNS:
        flags = {"second": ["--no-text", "--attack", "--attacks", *ATTACKS], "third": ["--also-keep-forgotten"]}
        assert forget(places, model, places / name, list(FORGOTTEN[name]), *flags.get(name, [])) == 0
        model = places / name
    return places


def findings(run: Path, when: str) -> Findings:
    return Findings.from_json(json.loads((run / f"{when}.json").read_text()))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_documents_were_known_and_no_others(requests: Path) -> None:
    before = findings(requests / "first", "before")
    level = Level.of("holdout", before.unseen)
    assert len(level.judge(before.forget).known) == 5
    assert all(each.exact > 0.9 for each in before.extractions)
    assert before.membership["mia_loss"] == 1.0


@pytest.mark.parametrize("name", RUNS)
def test_each_request_removes_and_keeps(requests: Path, name: str) -> None:
    said = manifest.read(requests / name)
    before, after = (findings(requests / name, when) for when in ("before", "after"))
    assert said["verdict"] == "removed"
    assert Level.from_json(said["level"]).judge(after.forget).removed
    assert said["measures"]["kept"] >= KEEP
    for set_, perplexity in before.perplexities.items():
        assert perplexity / after.perplexities[set_] >= KEEP
    assert of_set("", after.forget).probability < of_set("", before.forget).probability / 3
    runs = [max(each.longest_run for each in found.extractions) for found in (before, after)]
    assert runs[1] < runs[0] / 2


def test_later_requests_know_the_earlier_ones(requests: Path) -> None:
    assert manifest.read(requests / "first")["earlier"] == []
    earlier = manifest.read(requests / "third")["earlier"]
    assert [Path(each["run"]).name for each in earlier] == ["first", "second"]
    assert [len(each["documents"]["forget"]) for each in earlier] == [5, 2]
    assert all(each["now"] == "removed, then: removed" for each in earlier)  # the third keeps them so


def test_reports_say_it(requests: Path) -> None:
    page = (requests / "first" / "report.html").read_text()
    assert "All 5 documents are known no better than text that the model has never seen" in page
    assert "It does not say that the model is one that never saw the documents" in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    report = (requests / "third" / "report.md").read_text()
    assert report.startswith("# Removed")
    assert "## Earlier requests" in report
    assert (requests / "first" / "run.json").is_file()
    assert not (requests / "first" / "work").exists()


def test_without_text_nothing_of_the_documents_is_left(requests: Path) -> None:
    texts = [Path(file).read_text().split() for file in of(requests, FORGOTTEN["second"])]
    grams = {" ".join(words[i : i + 4]) for words in texts for i in range(len(words) - 3)}
    assert not (requests / "second" / "reference_log_probs.json").exists()
    read = 0
    for file in (requests / "second").rglob("*"):
        if file.suffix in {".json", ".jsonl", ".html", ".md", ".yaml"} and not file.name.startswith("tokenizer"):
            content, read = " ".join(file.read_text().split()), read + 1
            assert not [gram for gram in grams if gram in content], file.name
    assert read >= 8
    assert grams & {" ".join(words[i : i + 4]) for words in texts for i in range(5)}  # the search can find


def test_attacks_stand_in_the_dossier(requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = requests / "second"
    assert [each["attack"] for each in manifest.read(run)["attacks"]] == ["relearn", "sample"]
    assert not [path for path in run.glob("attacks/*/*/*") if path.is_dir()]  # answers, of which no text is to be kept
    again = ["forget", "--output-dir", str(run), "--resume"]
    assert main([*again, "--attacks", "extract", "--attack-options", "ways=[prefix]", "prefixes=[0.5]"]) == 0
    assert main(["attack", str(run), "--attacks", "quantize", "--formats", "int8", "--device", "cpu"]) == 0
    said = manifest.read(run)
    assert [each["attack"] for each in said["attacks"]] == ["quantize", "relearn", "sample", "extract"]
    assert "Attacked (quantize, relearn, sample, extract), at most " in (run / "report.md").read_text()
    assert manifest.read(requests / "first")["attacks"] == []
    capsys.readouterr()
    assert main(["forget", "--output-dir", str(requests / "first"), "--resume"]) == 0
    assert "this run has finished; nothing to resume" in capsys.readouterr().out


def test_a_request_is_calibrated_and_reported(
    requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run on own documents, by what is held out of the text to keep."""
    out = tmp_path / "calibrated"
    flags = ["--target", "0.9", "--resolution", "1", "--device", "cpu", "--save-models", "--output-dir", str(out)]
    assert main(["calibrate", "--model", str(requests / "first"), *flags]) == 0
    found = json.loads((out / "calibration.json").read_text())
    assert (found["benchmark"], found["utility"]) == ("own", "Prob retain")
    assert found["original"] == str(requests / "model")
    assert found["original_row"]["EM forget"] > 0.9 > 0.6 > found["unlearned_row"]["EM forget"]
    capsys.readouterr()
    assert main(["report", str(requests / "first"), str(out)]) == 0
    request, mixture = [line for line in capsys.readouterr().out.splitlines() if line.startswith("forget")]
    assert "removed" in request
    assert "5 documents" in request
    assert "removed" not in mixture  # what was said of another model


def test_the_model_is_verified(requests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(requests / "third")]) == 0
    out = capsys.readouterr().out
    assert "NOT" not in out
    assert "verdict: removed (then: removed)" in out
    assert main(["verify", str(requests / "first"), "--model", str(requests / "second"), "--files-only"]) == 1
    assert "NOT  files: 1 of" in capsys.readouterr().out
    assert main(["verify", str(requests / "first"), "--model", str(requests / "model"), "--files-only"]) == 1
    assert "the weights are those of the model BEFORE the request" in capsys.readouterr().out
    argv = ["verify", str(requests / "first"), "--forget", *of(requests, [0, 1, 2, 3, 9])]
    assert main(argv) == 1
    assert "is not there, or says something else" in capsys.readouterr().out


def test_all_is_undone_bit_for_bit(requests: Path, tmp_path: Path) -> None:
    before = ["model", "first", "second"]
    for run, original in zip(RUNS, before, strict=True):
        assert main(["restore", str(requests / run), "--output-dir", str(tmp_path / run)]) == 0
        assert same(tmp_path / run, requests / original)
        assert not same(requests / run, requests / original)
    assert [Path(each["run"]).name for each in manifest.earlier(str(tmp_path / "third"))] == ["first", "second"]
    assert manifest.earlier(str(tmp_path / "first")) == []


# ---- going on, and wrong uses ----------------------------------------------------------------------------------------


def test_a_stopped_request_goes_on_and_ends_the_same(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--max-steps", "4", "--eval-steps", "2", "--save-steps", "2", "--learning-rate", "1e-4", "--generate", "0"]
    assert forget(places, places / "model", tmp_path / "whole", [0, 1], *flags) == 0
    look = watch.Watch.look

    def stop(self: Any, step: int, *args: Any, **kwargs: Any) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return look(self, step, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(watch.Watch, "look", stop)
        assert forget(places, places / "model", tmp_path / "stopped", [0, 1], *flags) == 130
    assert not (tmp_path / "stopped" / "run.json").exists()
    assert main(["forget", "--output-dir", str(tmp_path / "stopped"), "--resume"]) == 0
    assert same(tmp_path / "whole", tmp_path / "stopped")
    points = [watch.read_points(tmp_path / name) for name in ("whole", "stopped")]
    assert points[0] == points[1]
    assert [point.step for point in points[0]] == [2, 4]
    capsys.readouterr()
    assert main(["forget", "--output-dir", str(tmp_path / "stopped"), "--resume"]) == 0
    assert "this run has finished; nothing to resume" in capsys.readouterr().out


def test_documents_that_the_model_does_not_know_are_named_and_nothing_is_trained(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, words = random.Random(0), ["salt", "lamp", "river", "clerk", "winter", "glass", "ferry", "roof"]
    write(tmp_path / "leak" / "strange.txt", " ".join(draw.choice(words) for _ in range(60)))
    unseen = str(places / "unseen")
    argv = ["forget", "--model", str(places / "model"), "--forget", str(tmp_path / "leak"), "--holdout", unseen]
    argv += ["--neutral", unseen, "--retain", *of(places, range(9, 20)), "--use-cpu", "--max-length", "128"]
    assert main([*argv, "--output-dir", str(tmp_path / "run"), "--disable-tqdm"]) == 0
    out = capsys.readouterr().out
    assert "not known, so that there is nothing to forget: leak/strange.txt" in out
    assert "Nothing to forget: the model does not know these documents" in out
    assert manifest.read(tmp_path / "run")["verdict"] == "unknown"
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_dry_run_says_what_there_is_and_leaves_nothing(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(places, places / "model", tmp_path / "run", [0, 1], "--dry-run") == 0
    out = capsys.readouterr().out
    assert "known: 2 of 2 documents" in out
    assert "cosine by layer: 0 " in out
    assert "GiB for weights, gradients" in out
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_trained_where_asked_for(places: Path, tmp_path: Path) -> None:
    four_bit = ["--load-in-4bit"] if importlib.util.find_spec("bitsandbytes") else []
    flags = [*four_bit, "--use-peft", "--no-keep-delta", "--max-steps", "2", "--eval-steps", "1", "--generate", "0"]
    flags += ["--learning-rate", "1e-2", "--patience", "1", "--keep", "0.99", "--resolution", "0.25"]
    assert forget(places, places / "model", tmp_path / "run", [0, 1], *flags) == 0
    said = manifest.read(tmp_path / "run")
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert said["measures"]["kept"] >= 0.99  # brought back to the edge by scaling it
    assert said["chosen"]["alpha"] < 1
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_rows_are_printed_as_they_would_be_trained(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(places, places / "model", tmp_path / "run", [0, 1], "--print-rows", "1") == 0
    out = capsys.readouterr().out
    assert "forget 1 of 2 (00.txt): " in out
    assert "retain 1 of 18 (02.txt): " in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep", "95"], "keep: expected a share in (0, 1], such as 0.95, got 95"),
        (["--retain", "self", "ours.txt"], "retain: expected files, or self or none alone, got self, ours.txt"),
        (["--method", "rmu"], "method: rmu changes a layer's states, not the probability of text; take another"),
        (["--method", "idk"], 'method: idk teaches "I do not know" as an answer'),
        (["--use-peft"], "keep_delta: with LoRA the adapter is the difference"),
        (
            ["--also-keep-forgotten"],
            "model is no run of gru-fast forget, so that there is nothing earlier; leave it out",
        ),
        (
            ["--also-keep-forgotten", "--method", "gd"],
            "also_keep_forgotten: expected NPO, which is pushed by how much",
        ),
        (["--attacks", "sample"], "attacks: there is no attack without --attack; give it too"),
        (["--attack", "--attack-options", "output_dir=there"], "attack_options: output_dir is not to be chosen there"),
        (["--attack", "--attack-options", "sample=2"], 'has no option "sample", did you mean "samples"?'),
        (["--attack", "--attacks", "samples"], 'got "samples", did you mean "sample"?'),
        (["--eval-steps", "0"], "eval_steps: expected a whole number of at least 1, got 0"),
    ],
)
def test_wrong_uses_are_told_in_a_line(
    places: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(places, places / "model", tmp_path / "run", [0], *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_to_be_forgotten_and_kept_is_refused(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(places, places / "model", tmp_path / "run", [9, 10], first_kept=9) == 1
    assert "2 of 11 documents of retain are in forget too" in capsys.readouterr().err
    argv = ["forget", "--model", str(places / "model"), "--output-dir", str(tmp_path / "run")]
    assert main(argv) == 1
    assert "forget: expected documents, got none; give --forget" in capsys.readouterr().err
    argv = ["forget", "--model", str(places / "model"), "--forget", *of(places, [0]), "--holdout", *of(places, [1, 2])]
    assert main([*argv, "--output-dir", str(tmp_path / "run")]) == 1
    assert "holdout: expected at least 3 documents, got 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
