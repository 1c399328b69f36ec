"""Recipes are found by file, and loading their names loads nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.backends import backend_names, get_backend
from coda_compile.errors import CompileError, OptionError
from coda_compile.precision import UNQUANTISED, get_precision, precision_names


def test_names_are_those_of_the_files():
    assert precision_names() == ("fp16", "fp32", "int4", "int8", "int8-static")


@pytest.mark.parametrize("name", precision_names())
def test_each_is_whole(name: str):
    recipe = get_precision(name)
    assert recipe.name == name
    assert recipe.summary
    assert (recipe.quantise is None) == (name == UNQUANTISED)
    assert recipe.quantise is not None or not recipe.calibrated


@pytest.mark.parametrize("name", backend_names())
def test_every_precision_of_a_target_has_a_recipe(name: str):
    assert set(get_backend(name).precisions) <= set(precision_names())


def test_an_unknown_one_lists_the_known(tmp_path: Path):
    with pytest.raises(
        CompileError, match=r"^precision 'int7' is unknown: use one of fp16, fp32, int4, int8, int8-static$"
    ):
        get_precision("int7")
    with pytest.raises(
        OptionError, match=r"^target 'cpu' has no precision 'int7': use one of fp32, int8, int8-static, int4$"
    ):
        compile(tiny_coda("bert"), CompileOptions(precision="int7"), output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["layers", "fp32.layers", "__init__", "os"])
def test_other_modules_are_no_recipes(name: str):
    with pytest.raises(CompileError, match="is unknown"):
        get_precision(name)


def test_names_load_no_torch():
    command = "import sys, coda_compile.precision as p; p.precision_names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
