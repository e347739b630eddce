"""From recipes to jobs: what is run, what is needed before, what is refused before anything is begun."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from gru_fast.cli import parse
from gru_fast.study import load, results
from gru_fast.study.plan import Plan, flags
from gru_fast.study.results import StudyRun
from gru_fast.study.task import commands_of, settings_of

RECIPE: dict[str, Any] = {
    "splits": ["forget05"],
    "methods": {"ga": {}, "gd": {"gamma": 0.1, "tau": 0.5}},
    "seeds": [3],
    "device": "cpu",
    "model": {"model": "base", "template": "phi"},
    "finetune": {"learning_rate": 1e-3},
    "unlearn": {"gamma": 0.4, "num_train_epochs": 2},
    "evaluate": {"max_rows": 7},
}


def plan_of(keep_models: bool = False, **changed: Any) -> Plan:
    return Plan(load.make({**RECIPE, **changed}), Path("out"), keep_models)


def jobs(plan: Plan) -> dict[str, Any]:
    return {job.name: job for group in plan.jobs().values() for job in group}


def runs(plan: Plan) -> dict[str, StudyRun]:
    return {planned.run.name: planned.run for planned in plan.runs()}


def options(job: Any, command: str) -> Any:
    """The options of a job's first such command, as its parser reads them."""
    for step in job.spec["steps"]:
        if step.get("argv", [""])[0] == command:
            return parse(step["argv"])
    raise AssertionError(f"no {command} in {job.name}")


def test_models_come_first_and_are_needed() -> None:
    found = jobs(plan_of())
    assert list(found)[:3] == ["original-seed3", "retrained-forget05-seed3", "original-forget05-seed3"]
    assert options(found["original-seed3"], "finetune").subset == "full"
    retrained = options(found["retrained-forget05-seed3"], "finetune")
    assert (retrained.subset, retrained.seed, retrained.learning_rate) == ("retain95", "3", "0.001")
    needs = ("original-seed3", "retrained-forget05-seed3")
    assert found["original-forget05-seed3"].needs == needs
    assert all(job.needs == needs for name, job in found.items() if name.startswith("forget05"))


def test_an_excerpt_is_made_once_and_what_all_jobs_read() -> None:
    found = jobs(plan_of(excerpt={"retain_rows": 9}, data="locuslab/TOFU", seeds=[3, 4]))
    assert list(found)[:2] == ["excerpt", "original-seed3"]
    assert found["excerpt"].spec["steps"] == [
        {"do": "excerpt", "source": "locuslab/TOFU", "data": "out/excerpt", "splits": ["forget05"], "retain_rows": 9}
    ]
    assert found["original-seed4"].needs == found["retrained-forget05-seed4"].needs == ("excerpt",)
    assert options(found["original-seed3"], "finetune").data == "out/excerpt"
    assert options(found["original-seed3"], "finetune").subset == "full"
    assert options(found["forget05-seed3-ga"], "unlearn").data == "out/excerpt"
    assert options(found["forget05-seed3-ga"], "eval").data == "out/excerpt"


def test_plain_and_rectified_differ_in_gru_alone() -> None:
    found = jobs(plan_of())
    plain, gru = (vars(options(found[f"forget05-seed3-gd{suffix}"], "unlearn")) for suffix in ("", "-gru"))
    differing = {name for name in {**plain, **gru} if plain.get(name) != gru.get(name)}
    assert differing == {"rectify", "monitor", "output_dir"}
    assert (plain["rectify"], gru["rectify"], plain["monitor"]) == ("false", "true", "true")
    assert (gru["gamma"], gru["tau"], gru["seed"]) == ("0.1", "0.5", "3")
    assert gru["model"] == "out/models/original-seed3"
    evaluation = options(found["forget05-seed3-gd-gru"], "eval")
    assert evaluation.model == gru["output_dir"] == "out/runs/forget05/seed3/gd-gru"
    assert evaluation.retain_logs == "out/models/retrained-forget05-seed3/eval/tofu-forget05"
    assert evaluation.max_rows == "7"


def test_a_run_serves_all_that_ask_for_it() -> None:
    part = {"gammas": [0.1, 0.4], "taus": [None, 2], "gamma": 0.4, "tau": None}
    found = runs(plan_of(methods={"ga": {}}, sensitivity=part, ablation={"tau": 2.0}))
    ours = {name.removeprefix("forget05-seed3-"): run for name, run in found.items() if run.kind == "unlearned"}
    assert {name: (run.variant, run.gamma, run.tau, list(run.uses)) for name, run in ours.items()} == {
        "ga": ("plain", None, None, ["comparison", "ablation"]),
        "ga-gru": ("gru", 0.4, None, ["comparison", "sensitivity"]),
        "ga-clipped": ("clipped", None, 2.0, ["ablation"]),
        "ga-gru-gamma0.4-tau2": ("gru", 0.4, 2.0, ["ablation", "sensitivity"]),  # clipped alike
        "ga-gru-gamma0.1-taunone": ("gru", 0.1, None, ["sensitivity"]),
    }


def test_how_good_the_average_is() -> None:
    part = {"tau": 2.0, "methods": ["gd"], "retain_batch_sizes": [8, 16], "warm_up_retain": [0, 3]}
    unlearn = {"gamma": 0.4, "per_device_train_batch_size": 8}
    plan = plan_of(ablation=part, unlearn=unlearn)
    found = {name.removeprefix("forget05-seed3-"): run for name, run in runs(plan).items() if "retain" in run.uses}
    assert {name: (run.retain_rows, run.warm_up, run.gamma, run.tau, run.folder) for name, run in found.items()} == {
        "gd-gru": (8, 0, 0.1, 0.5, "runs/forget05/seed3/gd-gru"),  # as the method has it: the comparison's own
        "gd-gru-retain8-warm3": (8, 3, 0.1, 0.5, "runs/forget05/seed3/gd-gru-retain8-warm3"),
        "gd-gru-retain16-warm0": (16, 0, 0.1, 0.5, "runs/forget05/seed3/gd-gru-retain16-warm0"),
        "gd-gru-retain16-warm3": (16, 3, 0.1, 0.5, "runs/forget05/seed3/gd-gru-retain16-warm3"),
    }
    args = options(jobs(plan)["forget05-seed3-gd-gru-retain16-warm3"], "unlearn")
    assert (args.retain_batch_size, args.warm_up_retain, args.rectify) == ("16", "3", "true")
    assert not hasattr(options(jobs(plan)["forget05-seed3-ga-gru"], "unlearn"), "retain_batch_size") or (
        options(jobs(plan)["forget05-seed3-ga-gru"], "unlearn").retain_batch_size is None
    )


def test_every_gamma_with_every_number_of_rows_to_keep() -> None:
    part = {"gammas": [0.1, 0.4], "tau": None, "retain_batch_sizes": [8, 16], "methods": ["ga"]}
    plan = plan_of(sensitivity=part, unlearn={"gamma": 0.4, "per_device_train_batch_size": 8})
    found = {
        name.removeprefix("forget05-seed3-"): run for name, run in runs(plan).items() if "gamma and rows" in run.uses
    }
    assert {name: (run.gamma, run.tau, run.retain_rows, list(run.uses)) for name, run in found.items()} == {
        "ga-gru": (0.4, None, 8, ["comparison", "sensitivity", "gamma and rows"]),  # as the method has it
        "ga-gru-gamma0.1-taunone": (0.1, None, 8, ["sensitivity", "gamma and rows"]),
        "ga-gru-gamma0.1-taunone-retain16": (0.1, None, 16, ["gamma and rows"]),
        "ga-gru-retain16": (0.4, None, 16, ["gamma and rows"]),
    }
    args = options(jobs(plan)["forget05-seed3-ga-gru-gamma0.1-taunone-retain16"], "unlearn")
    assert (args.gamma, args.retain_batch_size, args.rectify) == ("0.1", "16", "true")


def test_clipping_alone_is_trainers() -> None:
    found = jobs(plan_of(ablation={"methods": ["gd"]}))
    args = options(found["forget05-seed3-gd-clipped"], "unlearn")
    assert (args.rectify, args.max_grad_norm) == ("false", "0.5")
    assert "forget05-seed3-ga-clipped" not in found


def test_main_runs_come_before_the_others() -> None:
    names = list(jobs(plan_of(ablation={"methods": ["gd"]}, tv={"stg": [2]}, calibration={"shares": [0.9]})))
    order = [names.index(f"forget05-seed3-{name}") for name in ("gd-gru", "tv", "gd-clipped", "gd-gru-calibrated")]
    assert order == sorted(order)


def test_weights_are_deleted_when_nothing_needs_them_any_more() -> None:
    part = {"shares": [0.9], "methods": ["gd"]}

    def deletes(plan: Plan) -> set[str]:
        return {name for name, job in jobs(plan).items() if job.spec["steps"][-1]["do"] == "delete"}

    found = plan_of(calibration=part, tru={"stg": [1, 2]})
    assert deletes(found) == {
        "forget05-seed3-ga", "forget05-seed3-ga-gru", "forget05-seed3-tru",
        "forget05-seed3-gd-calibrated", "forget05-seed3-gd-gru-calibrated",
    }  # fmt: skip
    assert jobs(found)["forget05-seed3-gd-calibrated"].needs == ("forget05-seed3-gd",)
    assert deletes(plan_of(keep_models=True, calibration=part, tru={"stg": [1]})) == set()


def test_along_saves_after_every_epoch() -> None:
    found = jobs(plan_of(along={"methods": ["ga"]}))
    args = options(found["forget05-seed3-ga-gru"], "unlearn")
    assert (args.save_strategy, args.save_only_model) == ("epoch", "true")
    assert [step["do"] for step in found["forget05-seed3-ga-gru"].spec["steps"]] == [
        "train", "along", "command", "moved", "delete",
    ]  # fmt: skip
    assert options(found["forget05-seed3-gd-gru"], "unlearn").save_strategy == "no"


def test_strengths_of_task_vectors() -> None:
    plan = plan_of(tru={"stg": [0.5, 2], "num_units": 4})
    job = jobs(plan)["forget05-seed3-tru"]
    args = options(job, "tru")
    assert (args.stg, args.num_units, args.seed, args.method) == (["0.5", "2"], "4", "3", "tru")
    found = [run for run in runs(plan).values() if run.kind == "vector"]
    assert [(run.title, run.strength, run.folder) for run in found] == [
        ("TRU", 0.5, "runs/forget05/seed3/tru/stg-0.5"),
        ("TRU", 2.0, "runs/forget05/seed3/tru/stg-2"),
    ]


def test_given_models(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    log.write_text("{}")
    changed = {"finetune": None, "model": {"template": "phi"}, "target": "org/full", "seeds": [0, 1]}
    found = jobs(plan_of(**changed, retrained={"forget05": "org/retrained"}))
    assert list(found)[:2] == ["retrained-forget05", "original-forget05"]  # once, whatever the seeds
    assert options(found["retrained-forget05"], "eval").model == "org/retrained"
    assert options(found["forget05-seed1-ga"], "unlearn").model == "org/full"
    assert found["forget05-seed1-ga"].needs == ("retrained-forget05",)
    from_log = jobs(plan_of(**changed, retrained={"forget05": str(log)}))
    assert options(from_log["retrained-forget05"], "eval").from_logs == str(log)
    assert options(from_log["forget05-seed1-ga"], "eval").retain_logs == str(log)


def test_other_benchmarks(tmp_path: Path) -> None:
    given = {"finetune": None, "model": {}, "target": "org/model", "evaluate": {}}
    wmdp = plan_of(**given, benchmark="wmdp", splits=["cyber"])
    found = jobs(wmdp)
    assert list(found)[:2] == ["original-cyber", "cyber-seed3-ga"]
    assert found["cyber-seed3-ga"].needs == ()
    assert options(found["cyber-seed3-ga"], "unlearn").benchmark == "wmdp"
    assert not hasattr(options(found["cyber-seed3-ga"], "eval"), "split")
    muse = {**given, "benchmark": "muse", "splits": ["forget"], "data": "org/books"}
    found = jobs(plan_of(**muse, retrained={"forget": "org/retrained"}))
    args = options(found["forget-seed3-gd"], "eval")
    assert (args.data, args.retain_logs) == ("org/books", "out/models/retrained-forget/eval/muse-forget")
    (tmp_path / "summary.json").write_text("{}")  # an evaluation of it: MUSE has no numbers to print of such
    found = jobs(plan_of(**muse, retrained={"forget": str(tmp_path)}))
    assert "retrained-forget" not in found
    assert options(found["forget-seed3-gd"], "eval").retain_logs == str(tmp_path)
    assert found["forget-seed3-gd"].needs == ()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"unlearn": {"learning_rat": 1}}, "forget05, ga (and 1 more): learning_rat: no such option"),
        ({"methods": {"ga": {"gamma": 2}, "gd": {}}}, "forget05, ga: gamma"),
        ({"finetune": {"epochs": 3}}, "finetune: epochs: no such option"),
        ({"evaluate": {"max_rows": -1}}, "evaluate: max_rows: expected at least 0, got -1"),
        ({"tru": {"stg": [1], "epochs": 3}}, "tru: epochs: no option of --method tru"),
        (
            {"data": "./nowhere"},
            "target, retrained, data: no file or folder ./nowhere; a name on the hub is OWNER/NAME",
        ),
        ({"ablation": {"tau": 1, "retain_batch_sizes": [0]}}, "retain_batch_sizes: expected at least 1, got 0"),
        ({"ablation": {"tau": 1, "warm_up_retain": [4]}}, "warm_up_retain: expected retain_batch_sizes beside it"),
        ({"ablation": {}}, "ablation: ga is not clipped on forget05; give ablation: {tau: ...}"),
        ({"config": {"forget05": "tofu-fi"}}, 'no recipe "tofu-fi"'),
    ],
)
def test_what_commands_would_refuse_is_refused_before(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the text is what is tested
        plan_of(**changed).jobs()
    assert text in str(caught.value)


@pytest.mark.parametrize("name", load.names())
def test_every_recipe_of_the_package_can_be_planned(name: str) -> None:
    content = load.to_dict(load.read(load.find(name)))
    plan = Plan(load.make({**content, "device": "cpu"}), Path("out"))
    assert len(jobs(plan)) > 10
    names = [planned.run.name for planned in plan.runs()]
    assert len({*names}) == len(names)
    assert {need for job in jobs(plan).values() for need in job.needs} <= {*jobs(plan)}
    for job in jobs(plan).values():
        for step in job.spec["steps"]:
            if "argv" in step:
                parse(step["argv"])  # SystemExit on a flag that is not there


def test_a_dry_plan_asks_nothing_of_the_machine() -> None:
    content = load.to_dict(load.read(load.find("tofu-phi")))
    found = jobs(Plan(load.make(content), Path("out"), is_dry=True))
    assert options(found["forget05-seed0-gd-gru"], "unlearn").config == "tofu-phi-forget05"
    assert not hasattr(options(found["forget05-seed0-gd-gru"], "unlearn"), "use_cpu")


def test_commands_as_one_would_type_them() -> None:
    lines = commands_of(jobs(plan_of(along={"methods": ["ga"]}))["forget05-seed3-ga"].spec["steps"], {})
    run = "out/runs/forget05/seed3/ga"
    assert lines[1].startswith(f"for checkpoint in {run}/checkpoint-*; do gru-fast eval tofu ")
    assert '--model "$checkpoint" ' in lines[1]
    assert lines[1].endswith(f'--output-dir {run}/along/"$(basename "$checkpoint")"; done')


def test_commands_that_are_launched() -> None:
    launch = {"unlearn": "accelerate launch -m gru_fast.cli", "eval": "torchrun -m gru_fast.cli"}
    plan = plan_of(methods={"ga": {}, "rmu": {}}, along={"methods": ["ga"]}, launch=launch)
    ga, rmu = (
        commands_of(jobs(plan)[f"forget05-seed3-{method}"].spec["steps"], plan.recipe.launch)
        for method in ("ga", "rmu")
    )
    assert [line.partition(" --")[0] for line in (*ga, *rmu)] == [
        "accelerate launch -m gru_fast.cli unlearn",
        "for checkpoint in out/runs/forget05/seed3/ga/checkpoint-*; do torchrun -m gru_fast.cli eval tofu",
        "torchrun -m gru_fast.cli eval tofu",
        "gru-fast unlearn",  # it cannot be sharded, and need not be
        "torchrun -m gru_fast.cli eval tofu",
    ]
    # A study may go on with more processes that evaluate, not with more that share the rows of a step.
    others = plan_of(methods={"ga": {}, "rmu": {}}, along={"methods": ["ga"]}, launch={**launch, "eval": "other"})
    assert jobs(plan) == jobs(others)
    more = plan_of(methods={"ga": {}, "rmu": {}}, along={"methods": ["ga"]}, launch={**launch, "unlearn": "other"})
    for method, is_same in (("ga", False), ("rmu", True)):
        name = f"forget05-seed3-{method}"
        steps = [settings_of(jobs(each)[name].spec["steps"]) for each in (plan, more)]
        assert (steps[0] == steps[1]) == is_same


@pytest.mark.parametrize("name", ["tofu-llama2", "muse-books", "wmdp-zephyr"])
def test_seven_billion_parameters_are_spread_over_8_gpus_with_the_rows_of_the_paper(name: str) -> None:
    plan = Plan(load.read(load.find(name)), Path("out"), is_dry=True)
    for (_, method), used in plan._arguments.settings.items():
        if method != "rmu":
            assert 8 * used.per_device_train_batch_size * used.gradient_accumulation_steps == 32
    assert {"unlearn", "eval", "calibrate"} <= plan.recipe.launch.keys()
    assert all(line.endswith("-m gru_fast.cli") for line in plan.recipe.launch.values())
    arguments = shlex.split(plan.recipe.launch["unlearn"])[2:]
    parsed = launch_command_parser().parse_args([*arguments, "unlearn", "--rectify"])
    assert (parsed.num_processes, parsed.use_fsdp, parsed.fsdp_version) == (8, True, "2")
    assert (parsed.fsdp_state_dict_type, parsed.mixed_precision) == ("FULL_STATE_DICT", "bf16")
    assert (parsed.training_script, parsed.training_script_args) == ("gru_fast.cli", ["unlearn", "--rectify"])


def test_settings_are_the_same_whatever_their_order() -> None:
    first = {"do": "train", "argv": ["tru", "--stg", "1", "2", "--seed", "3"], "run": "r"}
    second = {"do": "train", "run": "r", "argv": ["tru", "--seed", "3", "--stg", "1", "2"]}
    assert settings_of([first, {"do": "delete", "run": "r"}]) == settings_of([second])
    assert settings_of([first]) != settings_of([{**first, "argv": ["tru", "--stg", "2", "1", "--seed", "3"]}])


def test_flags() -> None:
    given = {"tau": None, "rectify": True, "stg": [1, 2.5], "method_options": {"beta": 0.1}, "max_rows": 3}
    assert flags(given) == [
        "--tau", "null", "--rectify", "true", "--stg", "1", "2.5", "--method-options", '{"beta": 0.1}',
        "--max-rows", "3",
    ]  # fmt: skip


# ---- attacks ---------------------------------------------------------------------------------------------------------


def test_attacks_come_last_on_runs_and_on_their_mixtures() -> None:
    part = {"attacks": ["quantize", "sample"], "at": [0.9], "methods": ["gd"], "options": {"samples": 4}}
    plan = plan_of(attacks=part, calibration={"shares": [0.85, 0.9]}, evaluate={"max_rows": 7, "batch_size": 3})
    found = jobs(plan)
    attacked = found["forget05-seed3-gd-gru-attacked"]
    assert attacked.needs == ("forget05-seed3-gd-gru", "forget05-seed3-gd-gru-calibrated")
    assert "forget05-seed3-ga-gru-attacked" not in found
    run = "out/runs/forget05/seed3/gd-gru"
    models = [parse(step["argv"]).model for step in attacked.spec["steps"] if step["do"] == "command"]
    assert models == [run, f"{run}/calibration/target-0.9"]
    args = options(attacked, "attack")
    assert (args.original, args.retrained) == ("out/models/original-seed3", "out/models/retrained-forget05-seed3")
    assert args.retain_logs == "out/models/retrained-forget05-seed3/eval/tofu-forget05"
    assert (args.attacks, args.samples, args.evaluate) == (["quantize", "sample"], "4", '{"max_rows": 7}')
    assert Path(args.baselines).name == "baselines"  # one for all runs
    assert (args.batch_size, args.device, args.split, args.benchmark) == ("3", "cpu", "forget05", "tofu")
    # The weights go when the attacks are done, and not before; mixtures are kept till then.
    deleted = [step["run"] for step in attacked.spec["steps"] if step["do"] == "delete"]
    assert deleted == models
    for name in ("", "-calibrated"):
        assert all(step["do"] != "delete" for step in found[f"forget05-seed3-gd-gru{name}"].spec["steps"])
    assert options(found["forget05-seed3-gd-gru-calibrated"], "calibrate").save_models == "true"
    assert found["forget05-seed3-ga-gru-calibrated"].spec["steps"][-1]["do"] == "delete"


def test_attacks_without_calibration_and_with_a_log_for_a_retrained_model(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    log.write_text("{}")
    given = {"finetune": None, "target": "owner/model", "retrained": {"forget05": str(log)}}
    found = jobs(plan_of(attacks={}, model={}, **given))
    args = options(found["forget05-seed3-ga-attacked"], "attack")
    assert (args.original, args.retain_logs, hasattr(args, "retrained")) == ("owner/model", str(log), False)
    assert not hasattr(args, "attacks")  # all of them
    assert found["forget05-seed3-ga-attacked"].needs == ("forget05-seed3-ga",)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"attacks": ["quantise"]}, 'attacks: attacks: .* got "quantise", did you mean "quantize"'),
        ({"at": [0.9]}, "attacks: at: 0.9 is not among the shares of calibration"),
        ({"methods": ["npo"]}, "attacks: methods: 'npo' is not among methods"),
        ({"options": {"original": "x"}}, "attacks: original is the study's to say; leave it out"),
    ],
)
def test_attacks_that_cannot_be(part: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        plan_of(attacks=part)


def test_options_of_attacks_are_checked_before_anything_is_done() -> None:
    with pytest.raises(ValueError, match="attacks: samples: expected at least 1, got 0"):
        plan_of(attacks={"options": {"samples": 0}}).jobs()
    with pytest.raises(ValueError, match="attacks: smaples: no such option; did you mean"):
        plan_of(attacks={"options": {"smaples": 3}}).jobs()


# ---- GRU in other ways -----------------------------------------------------------------------------------------------

_OTHERS = {"update": {"optim": "gru_adamw", "rectify_update": True}, "slow": {"gamma": 0.2, "tau": 3.0}}


def test_variants_are_runs_with_gru_and_options_of_their_own() -> None:
    plan = plan_of(variants={"options": _OTHERS, "methods": ["gd"], "seeds": [3]})
    found = {name: run for name, run in runs(plan).items() if run.uses == [results.FURTHER]}
    assert sorted(found) == ["forget05-seed3-gd-gru-slow", "forget05-seed3-gd-gru-update"]
    slow, update = found["forget05-seed3-gd-gru-slow"], found["forget05-seed3-gd-gru-update"]
    usual = runs(plan)["forget05-seed3-gd-gru"]
    assert (slow.variant, slow.gamma, slow.tau) == ("slow", 0.2, 3.0)
    assert (update.gamma, update.tau) == (usual.gamma, usual.tau) == (0.1, 0.5)
    assert (slow.label, slow.folder) == ("GD + slow", "runs/forget05/seed3/gd-gru-slow")
    own, theirs = (vars(options(jobs(plan)[run.name], "unlearn")) for run in (update, usual))
    expected = {"optim": "gru_adamw", "rectify_update": "true", "output_dir": f"out/{update.folder}"}
    assert {name: own.get(name) for name in {**own, **theirs} if own.get(name) != theirs.get(name)} == expected


def test_variants_are_calibrated_and_attacked_as_the_comparison_is() -> None:
    parts = {"calibration": {"shares": [0.9]}, "attacks": {"at": [0.9]}, "variants": {"options": _OTHERS}}
    there = jobs(plan_of(**parts))
    for name in ("ga-gru", "ga-gru-slow"):
        assert there[f"forget05-seed3-{name}-attacked"].needs == (
            f"forget05-seed3-{name}",
            f"forget05-seed3-{name}-calibrated",
        )


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({}, r"variants: options: expected at least one, e\.g\. {pcgrad"),
        ({"options": {"gru": {"gamma": 0.1}}}, "options: expected names of .*, not plain, clipped, gru, got 'gru'"),
        ({"options": {"a/b": {"gamma": 0.1}}}, "options: expected names of a-z, .* got 'a/b'"),
        ({"options": {"none": {}}}, "options: none: expected options of gru-fast unlearn, got {}"),
        ({"options": {"x": {"seed": 3}}}, "variants: options: x: seed is the study's to say; leave it out"),
        ({"options": {"x": {"gama": 3}}}, "forget05, ga, variant x .*: gama: no such option; did you mean .gamma"),
        ({"options": {"x": {"gamma": 3}}}, r"forget05, ga, variant x .*: gamma: expected .*, got 3"),
        ({"options": _OTHERS, "methods": ["npo"]}, "variants: methods: 'npo' is not among methods"),
    ],
)
def test_variants_that_cannot_be(part: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        plan_of(variants=part).jobs()
