"""Other answers: drawn by a model and gone on with, read back by question, learned by DPO in place of IDK answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tofu_folders
from transformers import LlamaForCausalLM

from gru_fast.benchmarks.tofu.alternates import FILE, read_alternates, write
from gru_fast.benchmarks.tofu.rows import TofuOptions, load, unlearning
from gru_fast.cli import main
from gru_fast.data.templates import TEMPLATES, encode
from gru_fast.evaluation.alternates import write_alternates
from gru_fast.evaluation.asking import Scorer
from gru_fast.evaluation.generation import Asked

PHI = TEMPLATES["phi"]
TOLD = "She was born in {answer} ? {question}"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alternates")
    tofu_folders.save_data(folder / "data")
    tofu_folders.save_model(folder / "model", initializer_range=0.4)
    return folder


def rows_of(places: Path, *texts: str, split: str = "forget05") -> list[dict[str, str]]:
    rows = load(split, places / "data")
    return [{"question": row["question"], "answer": row["answer"], "alternate": text} for row in rows for text in texts]


def scorer(places: Path, batch_size: int) -> Scorer:
    tokenizer = tofu_folders.tokenizer()
    model = LlamaForCausalLM.from_pretrained(places / "model")
    return Scorer(model, tokenizer, tokenizer.eos_token_id, batch_size)


# ---- writing ---------------------------------------------------------------------------------------------------------


def drawn(places: Path, folder: Path, batch_size: int = 4, **options: Any) -> list[dict[str, str]]:
    pairs = [(row["question"], row["answer"]) for row in load("forget05", places / "data")]
    given: dict[str, Any] = {"instruction": TOLD, "max_new_tokens": 5, "count": 3, "progress": False, **options}
    return write_alternates(scorer(places, batch_size), PHI, pairs, folder, **given)


def test_an_answer_depends_on_its_question_and_number_alone(places: Path, tmp_path: Path) -> None:
    found = drawn(places, tmp_path / "a")
    pairs = [(row["question"], row["answer"]) for row in found]
    assert pairs == [(r["question"], r["answer"]) for r in load("forget05", places / "data") for _ in range(3)]
    assert len({row["alternate"] for row in found}) > 8  # drawn, each by itself
    assert drawn(places, tmp_path / "b", batch_size=1) == found
    more = drawn(places, tmp_path / "c", count=4)
    assert [row for number, row in enumerate(more) if number % 4 < 3] == found
    assert drawn(places, tmp_path / "d", seed=1) != found


def test_what_is_there_is_not_drawn_again(places: Path, tmp_path: Path) -> None:
    found = drawn(places, tmp_path)
    file = tmp_path / "alternates.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    changed = json.loads(lines[0]) | {"alternate": "kept"}
    file.write_text(json.dumps(changed) + "\n" + "".join(lines[1:5]))
    again = drawn(places, tmp_path)
    assert again[0]["alternate"] == "kept"
    assert again[1:] == found[1:]
    with pytest.raises(ValueError, match=r"holds records with seed 0, this evaluation has 1; .*--overwrite"):
        drawn(places, tmp_path, seed=1)


def test_a_next_question_is_cut_off(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def writing(self: Scorer, groups: Iterable[Sequence[Asked]]) -> Iterator[tuple[int, str]]:
        for number, asked in enumerate(each for group in groups for each in group):
            told.append(self.tokenizer.decode(asked.ids))
            yield number, "In Quito? Q: Who" if number else " In Oslo. Question: Where?"

    monkeypatch.setattr(Scorer, "writing", writing)
    found = drawn(places, tmp_path, batch_size=20)
    assert sorted({row["alternate"] for row in found}) == ["In Oslo.", "In Quito?"]
    assert "born in" in told[0]
    assert told[0].endswith("Answer :")  # which is put before what is taught: it is not to be a part of it


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_answers_go_to_their_questions_and_the_true_one_is_no_other(places: Path, tmp_path: Path) -> None:
    rows = load("forget05", places / "data")
    written = rows_of(places, "In Oslo.", "In Lima .")
    written.append({**written[0], "alternate": rows[0]["answer"]})
    written.append({**written[-1], "alternate": "  "})
    assert write(tmp_path / FILE, written[::-1]) == 0
    assert read_alternates(tmp_path, rows) == [["In Lima .", "In Oslo."]] * 4
    assert read_alternates(tmp_path / FILE, rows[2:]) == [["In Lima .", "In Oslo."]] * 2
    only_true = [{**row, "alternate": row["answer"]} for row in written[:2]]
    assert write(tmp_path / "true.jsonl", [*only_true, *written[2:]]) == 1


def test_alternates_are_learned_in_place_of_idk_answers(places: Path, tmp_path: Path) -> None:
    write(tmp_path / FILE, rows_of(places, "In Oslo .", "In Lima ."))
    tokenizer = tofu_folders.tokenizer()
    options = TofuOptions(data=str(places / "data"), alternates=str(tmp_path))
    dataset = unlearning(options, tokenizer, PHI, ("forget", "idk"), 0)
    seen = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        for index, row in enumerate(load("forget05", places / "data")):
            expected = [encode(tokenizer, PHI, row["question"], text, 500) for text in ("In Oslo .", "In Lima .")]
            seen.add((index, expected.index(dataset[index]["idk"])))
    assert seen == {(index, draw) for index in range(4) for draw in range(2)}


def test_a_method_that_learns_no_other_answers_says_so(places: Path) -> None:
    options = TofuOptions(data=str(places / "data"), alternates="nowhere")
    with pytest.warns(UserWarning, match="alternates: the method learns no other answers"):
        unlearning(options, tofu_folders.tokenizer(), PHI, ("forget",), 0)


def test_wrong_files(places: Path, tmp_path: Path) -> None:
    rows = load("forget05", places / "data")
    with pytest.raises(FileNotFoundError, match=r"alternates: no file .*make it with gru-fast write-alternates"):
        read_alternates(tmp_path / "nothing", rows)
    write(tmp_path / FILE, rows_of(places, "In Oslo.")[:3])
    with pytest.raises(ValueError, match=r"has no other answer to row 3, \"Where was .*written of another split\?"):
        read_alternates(tmp_path, rows)
    (tmp_path / FILE).write_text('{"question": "Where?", "answer": "Here."}\n')
    with pytest.raises(ValueError, match="object 1: expected texts question, answer and alternate"):
        read_alternates(tmp_path, rows)


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_from_a_model_to_altpo(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = ["--data", str(places / "data")], ["--model", str(places / "model")]
    options = ["--count", "3", "--max-new-tokens", "4", "--instruction", TOLD, "--device", "cpu"]
    assert main(["write-alternates", *data, *model, *options, "--output-dir", str(tmp_path / "other")]) == 0
    assert "12 answers to 4 questions of forget05" in capsys.readouterr().out
    train = ["--method", "dpo", "--rectify", "--alternates", str(tmp_path / "other"), "--use-cpu", "--disable-tqdm"]
    train += ["--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "1", "--num-train-epochs", "1"]
    assert main(["unlearn", *data, *model, *train, "--output-dir", str(tmp_path / "run")]) == 0
    assert "2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--instruction", "Lie!"], "instruction: expected {question} and {answer} in it, got no {question}"),
        (["--temperature", "0", "--count", "0"], "count: expected at least 1, got 0; temperature: expected a number"),
        (["--split", "forget5"], "split: expected forget01, forget05, forget10"),
    ],
)
def test_wrong_uses(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["write-alternates", "--model", "m", "--output-dir", str(tmp_path / "o"), *options]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_two_kinds_of_other_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="alternates: expected without idk_file"):
        TofuOptions(alternates="a", idk_file="b")
