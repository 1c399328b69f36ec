"""A target that runs nothing, so that tests of everything around a runtime need none."""

from coda_targets.runtimes.cpu import TARGET as CPU
from coda_targets.runtimes.target import Target

TARGET = Target(
    name="null",
    summary="compiles like cpu, runs nothing",
    providers=(),
    opset=CPU.opset,
    operators=CPU.operators,
    precisions=CPU.precisions,
    static_shapes=CPU.static_shapes,
    lowering=CPU.lowering,
    install="nothing runs a bundle of the null target: compile for another one",
)
