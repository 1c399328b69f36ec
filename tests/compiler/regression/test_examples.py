"""The workflow asks for what the command has."""

import re
from pathlib import Path

import yaml

from coda_compile.cli.measure import check
from coda_compile.regression.baseline import OUTPUT_VARIABLE

WORKFLOW = Path(__file__).parents[3] / "examples/ci/latency.yml"


def test_the_workflow_uses_options_that_exist_and_actions_pinned_by_major():
    steps = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]["latency"]["steps"]
    (gate,) = (step["run"] for step in steps if "coda-compile check" in step.get("run", ""))
    known = {name for parameter in check.params for name in parameter.opts}
    assert {"--against", "--build-baseline", "--junit"} <= set(re.findall(r"--[a-z-]+", gate)) <= known
    assert f"${OUTPUT_VARIABLE}" in gate
    assert "${{" not in gate  # what others name, such as branches, comes in through the environment only
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
