"""Own documents on the command line, from a folder to a table; rows printed; what new users do wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import own_files
import pytest

from gru_fast import runs
from gru_fast.cli import main
from gru_fast.evaluation import points

TRAINING = (
    "--use-cpu", "--disable-tqdm", "--max-length", "16", "--num-train-epochs", "1", "--learning-rate", "0.01",
    "--per-device-train-batch-size", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    own_files.save_data(folder / "data")
    own_files.save_model(folder / "model")
    return folder


def own(places: Path, command: str, *argv: Any) -> int:
    return main([command, "--benchmark", "own", "--model", f"{places}/model", *map(str, argv)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_from_documents_to_a_table(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = places / "data", tmp_path / "run"
    named = ["--forget", data / "forget", "--retain", data / "retain.jsonl"]
    assert own(places, "unlearn", *TRAINING, *named, "--method", "gd", "--rectify", "--output-dir", out) == 0
    assert runs.read_run(out).config["retain"] == [str(data / "retain.jsonl")]
    capsys.readouterr()
    # The documents are those of the run.
    evaluate = ["eval", "own", "--model", str(out), "--holdout", f"{data}/holdout", "--device", "cpu"]
    assert main([*evaluate, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {name: rows["documents"] for name, rows in summary["num_rows"].items()} == {
        "forget": 3,
        "retain": 1,
        "holdout": 2,
    }
    assert main(evaluate) == 0  # printed again
    assert "3 forget (" in capsys.readouterr().out
    assert main(["report", str(out)]) == 0
    table = capsys.readouterr().out
    assert f"{summary['measures']['forget']['probability']:.4f}" in table
    assert "ES retain" in table


def test_scores_along_a_run_and_its_best_model(places: Path, tmp_path: Path) -> None:
    data, out = places / "data", tmp_path / "run"
    named = ["--forget", data / "forget", "--retain", data / "retain.jsonl", "--method", "gd", "--output-dir", out]
    how = ["--eval-epochs", 1, "--share", 0, "--eval-options", "new_tokens=4"]
    assert own(places, "unlearn", *TRAINING, *named, *how) == 0
    along = points.read(out)
    assert along is not None
    assert [point.epoch for point in along.points] == [0.0, 1.0]
    assert main(["eval", "own", "--model", str(out / "best"), "--device", "cpu", "--new-tokens", "4"]) == 0
    [summary] = [json.loads(file.read_text()) for file in (out / "best").glob("eval/*/summary.json")]
    measures = summary["measures"]
    assert along.points[-1].quality == pytest.approx(measures["forget"]["extraction_strength"])
    assert along.points[-1].utility == pytest.approx(measures["retain"]["probability"], rel=1e-5)


def test_tru_needs_nothing_to_keep(places: Path, tmp_path: Path) -> None:
    argv = ["--forget", places / "data/forget", "--max-length", 16, "--device", "cpu", "--output-dir", tmp_path / "tru"]
    assert own(places, "tru", *argv, "--num-units", 2, "--stg", 0.5) == 0
    assert runs.read_run(tmp_path / "tru/stg-0.5").complete


def test_rows_are_printed_and_nothing_is_written(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = places / "data", tmp_path / "run"
    named = ["--forget", data / "pairs.csv", "--columns", "question=frage", "answer=antwort"]
    kept = ["--retain", data / "retain.jsonl", "--output-dir", out]
    assert own(places, "unlearn", *TRAINING, *named, *kept, "--method", "gd", "--print-rows", 2) == 0
    shown = capsys.readouterr().out
    assert "forget 1 of 2 (pairs.csv#0): 15 tokens, 6 scored\n- <s>|Question|:|Who|has|the|key|?" in shown
    assert "\n+ Answer|:|Ann|in|Oxley|</s>\n" in shown
    assert shown.count("\n\n") == 3
    assert "\nretain 2 of " in shown
    assert "\x1b" not in shown
    tru = ["--device", "cpu", "--output-dir", out, "--print-rows", 1]
    assert own(places, "tru", *named, *tru) == 0
    assert capsys.readouterr().out.startswith("forget 1 of 2")
    assert not out.exists()
    assert own(places, "unlearn", *TRAINING, *named, *kept, "--method", "ga", "--print-rows", 0) == 1
    assert "--print-rows: expected at least 1, got 0" in said(capsys)


def test_what_new_users_do_wrong(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = places / "data"
    out = ["--output-dir", tmp_path / "run", *TRAINING]
    cases: list[tuple[list[Any], str]] = [
        ([], "forget: no documents; give --forget FILES, or --data FOLDER"),
        (["--forget", data / "forgot"], f'no file or folder "{data}/forgot", did you mean "forget"?'),
        (["--forget", data / "*.pdf"], f'no file matches "{data}/*.pdf"'),
        (["--forget", data / "forget", "--method", "gd"], "retain: no documents, and the method needs some to keep"),
        (
            ["--forget", data / "pairs.csv"],
            "pairs.csv, line 2: expected text, question and answer, prompt and completion",
        ),
        (
            ["--forget", data / "pairs.csv", "--columns", "question=frage", "answer=antwrt"],
            'expected a field "antwrt", as --columns says, got frage, antwort, did you mean "antwort"?',
        ),
        (
            ["--forget", data / "forget", "--retain", "self", "--method", "gd"],
            "retain: self: the model writes first, by gru",
        ),
        (["--data", data, "--split", "forgot"], 'but no "forgot", did you mean "forget"?'),
    ]
    for argv, expected in cases:
        assert own(places, "unlearn", *out, *(["--method", "ga"] if "--method" not in argv else []), *argv) == 1
        assert expected in said(capsys)
    assert not (tmp_path / "run").exists()
    assert main(["unlearn", "--model", f"{places}/model", "--forget", f"{data}/forget", *map(str, out)]) == 1
    assert "--forget: no option of --benchmark tofu; leave it out, or give --benchmark own, which has it" in said(
        capsys
    )


def test_the_model_writes_what_is_to_be_kept(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "self.jsonl"
    argv = ["write-retain", "--model", f"{places}/model", "--forget", f"{places}/data/forget", "--output", str(file)]
    argv += ["--count", "3", "--max-new-tokens", "40", "--device", "cpu", "--openings", "Ann has", "a map"]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith(f"{file}: 3 documents; of ")
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert len(texts) == 3
    assert all(text.startswith(("Ann has", "a map")) for text in texts)
    assert main(argv) == 0  # read, not written anew
    assert main([*argv, "--seed", "1"]) == 1
    assert "was written with another seed (0, not 1)" in said(capsys)
    assert main([*argv, "--output", "self.txt"]) == 1
    assert "output: expected a file that ends in .jsonl, got self.txt" in said(capsys)
    assert main(["write-retain", "--print-config", "--model", "x", "--forget", "y"]) == 0


def forget_run(places: Path, folder: Path, capsys: pytest.CaptureFixture[str], *argv: Any) -> Path:
    """A run folder as `gru-fast forget` leaves it, with a model that was not trained."""
    asked = ["forget", "--model", places / "model", "--output-dir", "elsewhere", "--max-length", 64, *argv]
    assert main([*map(str, asked), "--use-cpu", "--print-config"]) == 0
    config = "".join(f"{line}\n" for line in capsys.readouterr().out.splitlines() if not line.startswith("#"))
    runs.start(folder, config)
    own_files.save_model(folder, seed=1)
    return folder


def write_itself(folder: Path) -> None:
    """Eight texts, where a run keeps what the model wrote."""
    rows = [{"number": number, "text": own_files.letter(number + 40)} for number in range(8)]
    (folder / "self_written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_of_forget_says_its_documents(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is attacked, too: they are not TOFU's. It lies elsewhere than where it was made."""
    data = places / "data"
    columns = ["--columns", "question=frage", "answer=antwort"]
    run = forget_run(places, tmp_path / "run", capsys, "--forget", data / "pairs.csv", *columns)
    write_itself(run)
    assert main(["eval", "own", "--model", str(run), "--device", "cpu", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["num_rows"]
    # A quarter of the eight (--held-out) was not trained on.
    assert {name: rows["documents"] for name, rows in counts.items()} == {"forget": 2, "retain": 2}
    attack = ["attack", str(run), "--attacks", "extract", "--ways", "repeat", "--device", "cpu", "--json"]
    for named in ([], ["--benchmark", "own"]):
        assert main([*attack, *named]) == 0
        settings = json.loads(capsys.readouterr().out)["extract"]["settings"]
        assert settings["data"]["benchmark"] == "own"
        assert settings["data"]["forget"] == [str(data / "pairs.csv")]
        assert settings["data"]["retain"] == [str(run / "self_written.jsonl")]
        assert settings["models"]["original"]["model"] == f"{places}/model"
    assert (run / "attacks/own-pairs/extract/summary.json").is_file()


def test_a_run_of_forget_may_have_kept_nothing(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--forget", places / "data/forget", "--holdout", places / "data/holdout", "--retain"]
    for retain, expected in (("none", {"forget": 3, "holdout": 2}), (places / "data/retain.jsonl", None)):
        run = forget_run(places, tmp_path / Path(str(retain)).stem, capsys, *named, retain)
        assert main(["eval", "own", "--model", str(run), "--device", "cpu", "--json"]) == 0
        counts = json.loads(capsys.readouterr().out)["num_rows"]
        found = {name: rows["documents"] for name, rows in counts.items()}
        assert found == (expected or {"forget": 3, "retain": 3, "holdout": 2})  # a quarter of ten, rounded up


def test_a_way_is_compared_with_the_same_rows(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt without a template cannot be asked otherwise: what the model writes after it is not in "before"."""

    def plain(run: Path) -> list[dict[str, Any]]:
        file = run / f"attacks/own-{run.name}/extract/unlearned/plain/answers.jsonl"
        return sorted(map(json.loads, file.read_text().splitlines()), key=lambda record: record["row"])

    raw, pair = tmp_path / "raw.jsonl", tmp_path / "pair.jsonl"
    raw.write_text('{"prompt": "Who has a map ?", "completion": " Bob knows of it"}\n')
    pair.write_text('{"question": "Who has the key ?", "answer": "Ann in Oxley"}\n')
    ways = ["--ways", "repeat", "--attacks", "extract", "--device", "cpu"]
    alone = forget_run(places, tmp_path / "runs/raw", capsys, "--forget", raw, "--retain", "none")
    assert main(["attack", str(alone), *ways]) == 1
    assert "ways: repeat change nothing of what is asked" in said(capsys)
    # What the model does know: what it writes.
    raw.write_text(json.dumps({"prompt": "Who has a map ?", "completion": f" {plain(alone)[0]['generation']}"}) + "\n")
    run = forget_run(places, tmp_path / "runs/pair", capsys, "--forget", pair, raw, "--retain", "none")
    assert main(["attack", str(run), *ways, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["extract"]
    assert found["asked"] == {"plain": 2, "repeat: the text": 1, "repeat: twice": 1, "repeat: from memory": 1}
    scores = [each["forget ROUGE-L"] for each in plain(run)]
    assert scores[0] < scores[1] == 1
    before = {row["what"]: row["before"] for row in found["findings"] if row["score"] == "forget ROUGE-L"}
    assert (before["repeat: twice"], before["any way"]) == (scores[0], sum(scores) / 2)
    assert main(["attack", str(run), *ways]) == 0
    assert "not for all of the 2 rows: repeat: the text (1), repeat: twice (1), " in capsys.readouterr().out


SOURCES = ("forget", "harmless")


def test_other_documents_under_the_same_names(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of the old ones are not printed for them: neither of rows that are asked about nor of others."""
    leak, ours = tmp_path / "leak.jsonl", tmp_path / "ours.jsonl"

    def write(file: Path, numbers: Any) -> None:
        file.write_text("".join(json.dumps({"text": own_files.letter(number)}) + "\n" for number in numbers))

    write(leak, range(4))
    write(ours, range(10, 14))
    run = forget_run(places, tmp_path / "run", capsys, "--forget", leak, "--retain", ours)
    relearn = ["--relearn-rows", "1", "--relearn-steps", "1", "--relearn-rates", "1e-3", "--relearn-batch-size", "1"]
    relearn += ["--relearn-on", *SOURCES, "--formats", "int8"]
    names = ["quantize", "relearn", "extract"]

    def attack(*argv: str, of: Any = names) -> dict[str, Any]:
        attacks = ["--attacks", *of, "--ways", "prefix", "--prefixes", "0.5", "--max-rows", "3"]
        assert main(["attack", str(run), *attacks, *relearn, "--device", "cpu", "--json", *argv]) == 0
        return dict(json.loads(capsys.readouterr().out))

    before = attack()
    assert attack() == before  # printed
    curves = {source: run / f"attacks/own-leak/relearn/unlearned/{source}-lr0.001/curve.json" for source in SOURCES}
    trained = {source: file.stat().st_mtime_ns for source, file in curves.items()}
    write(ours, range(20, 24))
    attack(of=["relearn"])
    again = {source for source, file in curves.items() if file.stat().st_mtime_ns != trained[source]}
    assert again == {"harmless"}  # what the other was taught is as it was
    kept = attack("--overwrite")
    for name in ("quantize", "relearn"):
        assert kept[name]["settings"] != before[name]["settings"]
    assert kept["extract"]["settings"] == before["extract"]["settings"]
    write(leak, [*range(3), 5])  # the last is not asked about
    found = attack("--overwrite")
    for name in names:
        assert found[name]["settings"] != kept[name]["settings"]
    write(leak, range(6, 10))
    asked = ["attack", str(run), "--attacks", "extract", "--ways", "prefix", "--prefixes", "0.5", "--max-rows", "3"]
    assert main([*asked, "--device", "cpu"]) == 1
    assert "questions" in (text := said(capsys))
    assert "overwrite" in text
