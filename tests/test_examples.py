"""The programs in examples/: they run as they stand, and show what they are there to show."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from words import word_llama, word_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["own_loop.py", "trainer.py"])
def test_example(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra [unlearn]")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = {line[:10].strip(): [float(text) for text in line[10:].split()] for line in done.stdout.splitlines()[-3:]}
    forgotten, kept = zip(*(losses[run] for run in ("before", "plain", "with GRU")), strict=True)
    assert max(forgotten[0], kept[0]) < 0.1  # it knew all of it
    assert min(forgotten[1:]) > 4.2  # worse than a guess among 64 tokens
    assert kept[2] < kept[1]
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_forgotten(tmp_path: Path) -> None:
    """examples/forget_text.py on a model that was taught its texts a moment ago: one goes, the others stay longer."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="needs the extra [unlearn]")
    texts = {file.name: file.read_text(encoding="utf-8") for file in sorted((EXAMPLES / "texts").rglob("*.txt"))}
    tokenizer = word_tokenizer(texts.values(), bos=True)
    model = word_llama(tokenizer, hidden_size=64, intermediate_size=64)
    taught = ["declaration.txt", "constitution.txt", "lorem-ipsum.txt", "mit-licence.txt"]
    batch = [torch.tensor([tokenizer(texts[name])["input_ids"]]) for name in taught]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        for ids in batch:
            model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    spec = importlib.util.spec_from_file_location("forget_text", EXAMPLES / "forget_text.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    others = str(EXAMPLES / "texts" / "others")
    flags = ["--retain", others, "--neutral", others, "--keep", "0.2", "--max-steps", "20", "--use-cpu"]
    known = example.main(["--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "run"), *flags])
    before, after = known["texts/forget/declaration.txt"]
    assert before.exact_memorization > 0.9
    assert after.exact_memorization < 0.5
    kept = [known[f"texts/others/{name}"] for name in taught[1:]]
    assert min(was.exact_memorization for was, _ in kept) > 0.9
    assert all(now.probability > after.probability for _, now in kept)


def test_every_program_is_tested() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert programs == {"forget_text.py", "own_loop.py", "trainer.py"}
