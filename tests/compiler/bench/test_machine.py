"""The fingerprint, and what makes two of them incomparable."""

from dataclasses import replace

import pytest

from coda_compile.bench.machine import this_machine, thread_count, usable_cores
from coda_compile.errors import CodaError


def test_this_machine_is_described():
    machine = this_machine()
    assert machine.cpu
    assert machine.cores == usable_cores() >= 1
    assert machine.memory_bytes > 1 << 28
    assert "onnxruntime" in machine.versions
    assert machine.differences(machine) == []


def test_differences_are_named():
    machine = this_machine()
    other = replace(machine, cpu="another", versions={**machine.versions, "onnxruntime": "1.0", "torch": "0"})
    differences = machine.differences(other)
    assert len(differences) == 2  # a library that runs nothing here does not count
    assert differences[0].startswith("CPU: ")
    assert differences[1].endswith("1.0 there")


def test_threads_default_to_every_core_and_never_exceed_them():
    assert thread_count(0) == usable_cores()
    assert thread_count(1) == 1
    with pytest.raises(CodaError, match=f"give at most {usable_cores()}$"):
        thread_count(usable_cores() + 1)
