"""What a target is for one compilation: finished, packing where it can, and verified where it runs."""

from dataclasses import replace

import pytest

from coda_compile.errors import OptionError
from coda_compile.lowering import complete, packing, verified_on
from coda_targets import TargetError, get_target

CPU = replace(get_target("cpu"), native=False)


def test_a_target_runs_nothing_and_is_verified_on_the_cpu():
    assert verified_on(get_target("null")) == replace(get_target("null"), native=False, providers=CPU.providers)


def test_function_bodies_are_verified_whatever_is_installed():
    assert get_target("cpu").native
    assert verified_on(get_target("cpu")) == CPU


def test_targets_are_found_by_name_or_refused():
    assert complete("cpu") == complete(get_target("cpu")) == get_target("cpu")
    with pytest.raises(TargetError, match=r"target 'abacus' is unknown"):
        complete("abacus")
    with pytest.raises(OptionError, match=r"target 'half' is not finished, it still lacks a heart: use target cpu"):
        complete(replace(CPU, name="half", lacks="a heart"))


def test_rows_are_packed_once_projections_are_one_product():
    names = packing(CPU).lowering
    assert names.index("pack_rows") - 1 == names.index("fuse_projections")
    with pytest.raises(OptionError, match=r"packs no rows: leave pack out"):
        packing(replace(CPU, lowering=()))
