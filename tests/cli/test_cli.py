"""The main parser: which commands there are, both spellings of a flag, unknown ones, what is imported when."""

from __future__ import annotations

import io
import logging
import pkgutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from interpreter import run_python

from gru_fast.cli import commands, main
from gru_fast.cli.commands import ls, unlearn

COMMANDS = [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]
HEAVY = ("transformers", "datasets", "peft", "matplotlib", "scipy", "yaml", "accelerate", "rouge_score")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert {"eval", "finetune", "info", "ls", "unlearn"} <= {*COMMANDS}
    for command in COMMANDS:
        assert f"    {command}  " in text


def test_only_the_chosen_command_makes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(parser: object) -> None:
        raise AssertionError("must not be called")

    monkeypatch.setattr(unlearn, "add_arguments", fail)
    assert main(["ls", "splits"]) == 0


@pytest.mark.parametrize("argv", [["eval", "lume"], ["merge"], ["write-retain", "--forget", "x"]])
@pytest.mark.parametrize("flag", ["--use-peft", "--lora-r"])
def test_what_reads_a_model_takes_no_options_of_an_adapter_to_train(
    argv: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--model", "nowhere", flag, "4"])
    assert f"unknown arguments: {flag}" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["ls", "--help"], ["info", "--help"]])
def test_help_imports_nothing_heavy(tmp_path: Path, argv: list[str]) -> None:
    code = (
        "import sys\nfrom gru_fast.cli import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\n"
        f"print('FOUND', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = run_python(code, tmp_path)
    assert result.stderr == ""
    assert result.stdout.endswith("FOUND []\n")


def test_both_spellings_of_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for spelling in ("--print-config", "--print_config"):
        assert main(["unlearn", "--model=m_1", "--max_length=7", "--max-steps", "3", "--use_cpu", spelling]) == 0
        text = capsys.readouterr().out
        assert "model: m_1  # flag\n" in text  # a value keeps its underscores
        assert "max_length: 7  # flag\n" in text


def test_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["unlearn", "--gama", "0.5"])
    assert "unknown arguments: --gama (did you mean --gamma?), 0.5" in capsys.readouterr().err


def test_a_launchers_own_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """As `deepspeed` gives it to each process."""
    with pytest.raises(SystemExit, match="2"):
        main(["unlearn", "--local_rank=1", "--model", "m"])
    assert "--local-rank=1: the launcher's, which nothing here needs; start it as deepspeed --no_local" in (
        capsys.readouterr().err
    )


def test_unknown_flag_of_a_command_below_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "tofu", "--retain-log", "x"])
    assert "--retain-log (did you mean --retain-logs?)" in capsys.readouterr().err


def test_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ls", "--jso"])
    assert "--jso (did you mean --json?)" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "extra"), [("transformers", "unlearn"), ("optuna.storages", "sweep")])
def test_missing_package_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    def fail(parser: object) -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr(unlearn, "add_arguments", fail)
    assert main(["unlearn"]) == 1
    assert capsys.readouterr().err == (
        f"gru-fast unlearn: ModuleNotFoundError: No module named '{package}'. This command needs extra packages: pip "
        f"install 'gru_fast[{extra}]'\n"
    )


def test_ls_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "npo_kl     NPO+KL (needs reference log-probabilities, a reference model, retain rows)",
        "beta=0.1  inverse temperature",
        "tofu-phi-forget05     Forget 5% of TOFU with Phi-1.5",
        "retain95 of tofu",
        "llama2-chat  '[INST] ... [/INST]'",
        r"phi          'Question: ...\n', answer after 'Answer: '",
    ):
        assert expected in text


def test_ls_of_one_section_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from gru_fast.unlearn import methods

    assert main(["ls", "methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["methods"]
    assert [method["name"] for method in found["methods"]] == methods.names()
    npo = next(method for method in found["methods"] if method["name"] == "npo")
    assert npo["options"][0]["name"] == "beta"
    assert npo["options"][0]["default"] == 0.1


def test_ls_has_a_heading_for_every_section() -> None:
    assert set(ls._SECTIONS) == set(ls._HEADINGS)


def test_what_deepspeed_logs_is_no_part_of_the_output() -> None:
    """Its handler, made at import, writes to stdout. A handler to a file stays where it is."""
    logger = logging.getLogger("DeepSpeed")
    theirs, before = logging.StreamHandler(sys.stdout), list(logger.handlers)
    logger.handlers = [theirs]
    try:
        assert main(["ls", "methods", "--json"]) == 0
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            logger.warning("said")
            logger.handle(logger.makeRecord("DeepSpeed", logging.WARNING, "real_accelerator.py", 1, "no GPU", (), None))
            logger.handle(logger.makeRecord("DeepSpeed", logging.ERROR, "real_accelerator.py", 1, "broken", (), None))
    finally:
        logger.handlers = before
    assert (out.getvalue(), err.getvalue()) == ("", "said\nbroken\n")
