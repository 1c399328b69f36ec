"""A target that runs nothing, for tests of everything around a runtime."""

from coda_targets.runtimes import Runtime

RUNTIME = Runtime(
    name="null",
    providers=(),
    install="nothing runs a bundle of the null target: compile for another one",
    offered=False,
)
