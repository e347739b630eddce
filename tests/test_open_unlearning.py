"""examples/open_unlearning, on a small framework of our own making that is laid out as open-unlearning is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

pytest.importorskip("transformers", reason="needs the extra [unlearn]")

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, TokenizersBackend, Trainer, TrainingArguments

from gru_fast.unlearn import GRUMixin, GRUOptions, PairCollator

HERE = Path(__file__).parents[1] / "examples" / "open_unlearning"
FILES = {
    "trainer/__init__.py": """
from transformers import Trainer
from trainer.unlearn.parts import Ascent, Part
TRAINER_REGISTRY = {cls.__name__: cls for cls in (Trainer, Ascent, Part)}
""",
    "trainer/unlearn/__init__.py": "",
    "trainer/unlearn/base.py": """
from transformers import Trainer
class UnlearnTrainer(Trainer):
    pass
""",
    "trainer/unlearn/parts.py": """
from trainer.unlearn.base import UnlearnTrainer
class Ascent(UnlearnTrainer):
    def __init__(self, evaluators=None, template_args=None, *args, **kwargs):
        super().__init__(*args, **kwargs)
    def compute_loss(self, model, inputs, return_outputs=False):
        loss = -model(**inputs["forget"]).loss
        return (loss, {}) if return_outputs else loss
class Part(Ascent):
    def create_optimizer(self):
        for name, param in self.model.named_parameters():
            param.requires_grad = "layers.1.mlp" in name
        super().create_optimizer()
        for param in self.model.parameters():
            param.requires_grad = True
""",
    "train.py": """
import sys
from trainer import TRAINER_REGISTRY
print(sys.argv[1:], *sorted(f"{name}:{cls.__mro__[1].__name__}" for name, cls in TRAINER_REGISTRY.items()))
""",
}


@pytest.fixture(name="checkout")
def make_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, content in FILES.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "trainer"]:
        del sys.modules[name]


def example() -> Any:
    spec = importlib.util.spec_from_file_location("gru_of_open_unlearning", HERE / "gru.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(name: str, folder: Path, **method_args: Any) -> Any:
    from trainer import TRAINER_REGISTRY

    args = TrainingArguments(
        str(folder / "run"), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1,
        learning_rate=0.05, optim="sgd", max_grad_norm=0.0, logging_steps=1, save_strategy="no", report_to="none",
        remove_unused_columns=False, use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = TRAINER_REGISTRY[name](
        model=tiny.llama(), train_dataset=tiny.dataset(), eval_dataset=None, tokenizer=None, evaluators=None,
        template_args=None, data_collator=PairCollator(0), args=args, **method_args,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_every_unlearning_trainer_has_gru_in_front_and_the_others_have_not(checkout: Path) -> None:
    from trainer import TRAINER_REGISTRY

    assert example().register() == ["Ascent", "Part"]
    assert TRAINER_REGISTRY["Trainer"] is Trainer
    for name in ("Ascent", "Part"):
        cls = TRAINER_REGISTRY[name]
        assert issubclass(cls, GRUMixin)
        assert cls.__name__ == name


def test_without_options_it_is_the_trainer_behind_and_with_them_it_rectifies(checkout: Path) -> None:
    example().register()
    off, on = trained("Ascent", checkout), trained("Ascent", checkout, gru={"rectify": True, "gamma": 0.5, "tau": 1.0})
    assert not any("cos" in entry for entry in off.state.log_history)
    found = [entry for entry in on.state.log_history if "loss" in entry]
    assert len(found) == 3
    assert all(entry["norm_after"] <= 1.0 + 1e-3 for entry in found)


def test_what_the_optimizer_does_not_hold_is_in_no_gradient(checkout: Path) -> None:
    """As its RMU: it asks for the gradients of all parameters and trains a few."""
    example().register()
    trainer = trained("Part", checkout, gru={"rectify": True, "gamma": 0.5})
    names = trainer.retain_ema.names
    assert names
    assert all("layers.1.mlp" in name for name in names)
    start = dict(tiny.llama().named_parameters())
    for name, param in trainer.model.named_parameters():
        assert torch.equal(param, start[name]) == ("layers.1.mlp" not in name)


def test_it_is_run_in_a_checkout(checkout: Path) -> None:
    def run(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(HERE / "gru.py"), *words], cwd=where, capture_output=True, text=True, check=False
        )

    done = run("--config-name=unlearn.yaml", "+gru=default", where=checkout)
    assert done.returncode == 0, done.stderr
    assert f"['--config-dir', '{HERE / 'configs'}', '--config-name=unlearn.yaml', '+gru=default']" in done.stdout
    assert "Ascent:WithGRU Part:WithGRU" in done.stdout
    done = run(where=checkout / "src")
    assert done.returncode == 1
    assert "src/src/train.py: no such file; run this in a checkout of open-unlearning" in done.stderr


def test_configurations_have_options_that_there_are() -> None:
    known = {field.name for field in fields(GRUOptions)}
    files = sorted((HERE / "configs" / "gru").glob("*.yaml"))
    assert [path.stem for path in files] == ["default", "monitor"]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# @package trainer\n")
        given = yaml.safe_load(text)["method_args"]["gru"]
        assert set(given) <= known
        assert GRUOptions(**given).follows_retain
    for path in (HERE / "configs" / "experiment").rglob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"/gru": "default"} in content["defaults"]


# ---- a folder of ours under its transformers -------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}])
def test_keys_of_transformers_4_change_nothing_under_5(tmp_path: Path, scaling: dict[str, Any]) -> None:
    """What 4 makes of them: findings/transformers4_computes_otherwise_from_folders_of_5.sh."""
    page = (Path(__file__).parent.parent / "docs" / "open-unlearning.md").read_text()
    code = page.split("<!-- for transformers 4 -->\n```python\n")[1].split("```")[0]
    folder, ids = tmp_path / "run", torch.arange(40)[None]
    model = tiny.llama(rope_parameters={"rope_theta": 5e5, **scaling}).eval()
    model.save_pretrained(folder)
    TokenizersBackend(tokenizer_object=Tokenizer(WordLevel({"a": 0}))).save_pretrained(folder)
    exec(code.replace("runs/npo-gru", str(folder)), {})
    written = json.loads((folder / "config.json").read_text())
    assert (written["rope_theta"], written["rope_scaling"]) == (5e5, scaling)
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [0]
