"""Recipes of studies: what is read, what is refused, what is left when a study is narrowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gru_fast.study import load
from gru_fast.study.recipe import Calibration, Sensitivity

WHOLE: dict[str, Any] = {
    "splits": ["forget05", "forget10"],
    "methods": {"ga": None, "gd": {"gamma": 0.1, "tau": None}},
    "seeds": [0, 1],
    "model": {"model": "m"},
    "finetune": {},
    "unlearn": {"learning_rate": 1e-5, "tau": 1.0},
    "ablation": {"methods": ["gd"], "tau": 2},
    "sensitivity": {"gammas": [0.1], "splits": ["forget05"], "seeds": [0]},
}


def made(**changed: Any) -> Any:
    return load.make({**WHOLE, **changed})


def refusal(**changed: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the text is what is tested
        made(**changed)
    return str(caught.value)


def test_options_of_a_run_are_those_of_the_most_special_place() -> None:
    splits = {
        "forget05": None,
        "forget10": {"unlearn": {"tau": 3.0, "learning_rate": 2e-5}, "methods": {"gd": {"tau": 4.0}}},
    }
    recipe = made(splits=splits)
    assert recipe.options("forget05", "ga") == {"learning_rate": 1e-5, "tau": 1.0}
    assert recipe.options("forget05", "gd") == {"learning_rate": 1e-5, "tau": None, "gamma": 0.1}
    assert recipe.options("forget10", "ga") == {"learning_rate": 2e-5, "tau": 3.0}
    assert recipe.options("forget10", "gd") == {"learning_rate": 2e-5, "tau": 4.0, "gamma": 0.1}


def test_a_part_holds_for_what_it_names_and_else_for_all() -> None:
    recipe = made()
    assert recipe.ablation.holds("forget10", 1, "gd")
    assert not recipe.ablation.holds("forget10", 1, "ga")
    assert recipe.sensitivity.holds("forget05", 0, "ga")
    assert not recipe.sensitivity.holds("forget05", 1, "ga")
    assert not recipe.sensitivity.holds("forget10", 0, "ga")


def test_points_of_a_sensitivity_come_once() -> None:
    part = Sensitivity(gammas=[0.1, 0.8], taus=[1.0, None], gamma=0.8, tau=1.0)
    assert part.points(0.5) == [(0.1, 1.0), (0.8, 1.0), (0.8, None)]
    assert Sensitivity(taus=[1.0, 2.0]).points(0.5) == [(0.5, 1.0), (0.5, 2.0)]  # the method's own gamma
    grid = Sensitivity(gammas=[0.1, 0.2], taus=[1.0, None], grid=True)
    assert grid.points(0.5) == [(0.1, 1.0), (0.1, None), (0.2, 1.0), (0.2, None)]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"methodss": {}}, 'methodss: no such key; did you mean "methods"?'),
        ({"methods": {"gaa": {}}}, "methods: no 'gaa' there; did you mean \"ga\"?"),
        ({"splits": {"forget05": {"methods": {"npo": {}}}}}, "splits: forget05: methods: no 'npo' there"),
        ({"splits": []}, "splits: expected at least one"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"seeds": ["x"]}, "seeds: expected a whole number, got 'x'"),
        ({"finetune": None}, "expected either finetune or target"),
        ({"target": "t"}, "expected either finetune or target"),
        ({"finetune": None, "target": "t", "retrained": {"forget05": "r"}}, "retrained: no model for forget10"),
        ({"model": {}}, "model: expected model: {model: NAME}"),
        ({"benchmark": "tofuu"}, "benchmark: expected one of"),
        ({"benchmark": "muse"}, "finetune: gru-fast finetune teaches TOFU, not muse"),
        ({"toy": {}}, "toy: expected finetune beside it, and no model"),
        ({"toy": {"hidden_size": 20}, "model": {"template": "phi"}}, "toy: expected hidden_size a multiple of 8"),
        ({"excerpt": {"retain_rows": 0}}, "excerpt: expected retain_rows of at least 1, got 0"),
        ({"excerpt": {}, "toy": {}, "model": {"template": "phi"}}, "excerpt: expected finetune beside it, and no toy"),
        ({"ablation": {"methods": ["npo"]}}, "ablation: methods: 'npo' is not among methods"),
        ({"along": {"seeds": [7]}}, "along: seeds: 7 is not among seeds"),
        ({"sensitivity": {}}, "sensitivity: expected gammas or taus"),
        ({"sensitivity": {"gammas": [1.5]}}, "sensitivity: gamma"),
        (
            {"sensitivity": {"gammas": [0.5], "retain_batch_sizes": [0]}},
            "retain_batch_sizes: expected at least 1, got 0",
        ),
        ({"sensitivity": {"taus": [1], "retain_batch_sizes": [4]}}, "retain_batch_sizes: expected gammas beside it"),
        ({"calibration": {}}, "calibration: expected shares"),
        ({"calibration": {"shares": [85]}}, "calibration: shares: expected numbers in (0, 1], got 85"),
        ({"tru": {"num_units": 4}}, "tru: expected stg"),
        ({"config": {"forget01": "tofu-phi-forget05"}}, "config: 'forget01' is not among splits"),
        ({"device": "cuda:1"}, "device: expected cpu, or nothing, got 'cuda:1'; --devices chooses among GPUs"),
        (
            {"launch": {"ls": "torchrun"}},
            "launch: expected what starts finetune, unlearn, tru, eval, calibrate,",
        ),
        ({"launch": {"eval": " "}}, "got eval: ' '"),
        ({"launch": {"eval": "torchrun 'x"}}, 'got eval: "torchrun \'x"'),
        ({"unlearn": {"seed": 7}}, "unlearn: seed is the study's to say; leave it out"),
        ({"methods": {"ga": {"rectify": True}}}, "methods: ga: rectify is the study's to say"),
        ({"splits": {"forget05": {"unlearn": {"split": "x"}}}}, "splits: forget05: unlearn: split is the study's"),
        ({"evaluate": {"retain_logs": "x"}}, "evaluate: retain_logs is the study's to say"),
        ({"tru": {"stg": [1], "model": "x"}}, "tru: model is the study's to say"),
        ({"unlearn": 3}, "unlearn: expected key=value or JSON, got 3"),
        ({"methods": 3}, "methods: expected NAME: value lines, got 3"),
        ({"along": 3}, "along: expected `key: value` lines, got 3"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], text: str) -> None:
    assert text in refusal(**changed)


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = refusal(seeds=[], samples=-1, along={"methods": ["npo"]})
    assert "seeds: expected at least one" in text
    assert "samples: expected at least 0, got -1" in text
    assert "along: methods: 'npo' is not among methods" in text


def test_plain_values_make_the_same_recipe_again() -> None:
    recipe = made(calibration={"shares": [0.9]}, along={})
    again = load.make(load.to_dict(recipe))
    assert again == recipe
    assert again.calibration == Calibration(shares=[0.9])
    assert "benchmark" not in load.to_dict(recipe)  # as it is by default


def test_narrowed() -> None:
    found = load.only(load.to_dict(made()), ["ga"], ["forget05"], [1])
    assert (list(found.methods), list(found.splits), found.seeds) == (["ga"], ["forget05"], [1])
    assert found.ablation is None  # it was of gd alone
    assert found.sensitivity is None  # it was of seed 0 alone
    both = load.only(load.to_dict(made()), ["ga", "gd"], ["forget05"], [0])
    assert both.ablation is not None
    assert both.sensitivity is not None


def test_files(tmp_path: Path) -> None:
    assert {"tofu-tiny", "tofu-smollm2", "tofu-phi", "tofu-llama2", "muse-books", "wmdp-zephyr"} <= {*load.names()}
    with pytest.raises(FileNotFoundError, match='no study "tofu-tini"; did you mean "tofu-tiny"'):
        load.find("tofu-tini")
    own = tmp_path / "own.yaml"
    own.write_text("# Mine\nsplits: [forget05]\nsplits: [forget10]\n")
    assert load.find(str(own)) == own
    assert load.title(own) == "Mine"
    with pytest.raises(ValueError, match=r"own\.yaml: line 3: \"splits\" is there twice"):
        load.read(own)
    own.write_text("- forget05\n")
    with pytest.raises(ValueError, match="expected `key: value` lines, got list"):
        load.read(own)
