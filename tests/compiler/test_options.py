"""What options contradict each other, told before anything is loaded; and how the command line spells them."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from coda_compile import CompileOptions, compile
from coda_compile.backends import get_backend
from coda_compile.cli.compile import compile as command
from coda_compile.cli.main import flag
from coda_compile.errors import CodaError, OptionError
from coda_targets import TargetError

TWO = ("topics", "moods")


def test_one_target_and_one_precision_may_be_given_alone():
    assert CompileOptions().variants() == CompileOptions(target=("cpu",), precision=("fp32",)).variants()
    backend = get_backend("cpu")
    changed = replace(backend, runtime=replace(backend.runtime, kernels=""))
    ((found, precision),) = CompileOptions(target=changed).variants()
    assert (found, precision.name) == (changed, "fp32")


def test_every_target_in_every_precision_in_the_order_given():
    found = CompileOptions(target=("null", "cpu"), precision=("int8", "fp32")).variants()
    assert [(backend.name, precision.name) for backend, precision in found] == [
        ("null", "int8"),
        ("null", "fp32"),
        ("cpu", "int8"),
        ("cpu", "fp32"),
    ]


@pytest.mark.parametrize(
    ("options", "tasks", "sentence"),
    [
        ({"target": ()}, None, "there is nothing to compile for: give a target"),
        ({"target": ("cpu", "cpu")}, None, "target 'cpu' is given twice: give it once"),
        ({"precision": ("int8", "int8")}, None, "precision 'int8' is given twice: give it once"),
        ({"precision": ("fp32", "int7")}, None, "target 'cpu' has no precision 'int7': use one of fp32, int8,"),
        ({"precision": "int8-static"}, None, "precision int8-static needs calibration data: give calib"),
        ({"precision": ("fp32", "int8-static")}, None, "precision int8-static needs calibration data"),
        ({"calibration": "x.csv"}, None, "precision fp32 is not calibrated: leave calibration out"),
        (
            {"prune_gates": 0.1},
            None,
            "prune_gates measures gates on calibration data: give calibration",
        ),
        ({"ood": "energy"}, None, "ood and ood_data go together"),
        (
            {"ood": "luck", "ood_data": "x.csv"},
            None,
            "score 'luck' is unknown: use one of msp, energy, maxlogit",
        ),
        ({"problem_type": "several"}, None, "problem_type 'several' is unknown: use one of single_label"),
        ({"labels": ["a", "a"]}, None, "labels needs a name of its own for each class"),
        ({"labels": ["a", "b"]}, TWO, "problem_type and labels are one model's"),
        ({"problem_type": "regression"}, TWO, "problem_type and labels are one model's"),
        ({"prune_gates": 0.1, "calibration": "x.csv"}, TWO, "several tasks cannot be pruned together"),
        ({"precision": "int8-static", "calibration": "x.csv"}, TWO, "several tasks cannot share precision int8-static"),
        ({"ood": "energy", "ood_data": "x.csv"}, TWO, "several tasks need ood_data once for each"),
        ({"ood": "energy", "ood_data": {"topics": "x.csv"}}, TWO, "several tasks need ood_data once for each"),
    ],
)
def test_contradictions(options: dict[str, Any], tasks: tuple[str, ...] | None, sentence: str):
    with pytest.raises(OptionError, match=sentence):
        CompileOptions(**options).check(tasks)


def test_unknown_targets_are_the_targets_own_error():
    with pytest.raises(TargetError, match="target 'abacus' is unknown"):
        CompileOptions(target=("cpu", "abacus")).check()


@pytest.mark.parametrize("options", [{"precision": ("fp32", "int7")}, {"target": "abacus"}, {"calibration": "x.csv"}])
def test_nothing_is_loaded_before_options_hold(tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(CodaError, match=r"int7|abacus|calibration"):
        compile(tmp_path / "nowhere", CompileOptions(**options), output=tmp_path / "b")


def test_every_task_has_its_own_texts():
    options = CompileOptions(ood="energy", ood_data={"moods": "m.csv", "topics": Path("t.csv")})
    assert options.ood_files(TWO) == {"topics": Path("t.csv"), "moods": Path("m.csv")}
    assert CompileOptions(ood="energy", ood_data="x.csv").ood_files() == {"": Path("x.csv")}
    assert CompileOptions().ood_files(TWO) == {}


def test_the_command_line_has_a_flag_for_every_option():
    flags = {spelt for parameter in command.params for spelt in parameter.opts}
    assert {flag(field.name) for field in fields(CompileOptions)} <= flags
