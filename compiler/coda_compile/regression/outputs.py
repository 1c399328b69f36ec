"""The result of a check for the terminal, JSON, JUnit and GitHub."""

import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coda_compile.regression.ab import Estimate, Timing
from coda_compile.regression.check import CheckResult, change, ends, percent
from coda_compile.regression.verdict import Verdict

SCHEMA_VERSION = 1
_TITLE = "coda-compile check"
_COLOUR = {Verdict.NO_REGRESSION: "green", Verdict.REGRESSION: "red", Verdict.CANNOT_TELL: "yellow"}
_LEVEL = {Verdict.NO_REGRESSION: "notice", Verdict.REGRESSION: "error", Verdict.CANNOT_TELL: "warning"}
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# Folders, refs and names of operators are anyone's text: none of it is markup.
_out = Console(highlight=False, markup=False, emoji=False)
_err = Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def watching() -> Iterator[Callable[[int, Estimate], None]]:
    """Something to call after each launch, which shows how it goes; silent where nobody looks."""
    with _err.status("comparing …") if _err.is_terminal else _nothing() as status:

        def on_launch(done: int, estimate: Estimate) -> None:
            if status is not None:
                so_far = f": {change(estimate.ratio.middle)}, {ends(estimate.ratio)}" if estimate.ratio else ""
                status.update(Text(f"timing in turns, {_launches(done)}{so_far}"))

        yield on_launch


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def show(result: CheckResult) -> None:
    """Print it for people."""
    _out.print(Text.assemble((result.bundle, "bold"), " against ", (result.baseline, "bold")), soft_wrap=True)
    if result.differences:
        table = Table(box=None, pad_edge=False, padding=(0, 2))
        for name in ("", "baseline", "bundle", ""):
            table.add_column(name, overflow="fold")
        for item in result.differences:
            mark = Text("regression", style="red") if item.regression else Text("note", style="dim")
            table.add_row(Text(item.what), Text(item.before), Text(item.after), mark)
        _out.print(table)
    else:
        facts = result.facts
        _out.print(
            f"  nothing deterministic differs: {facts.nodes} nodes after fusions, {facts.multiply_adds / 1e6:,.1f} M "
            f"multiply-adds, {facts.bytes / 1e6:,.1f} MB",
            soft_wrap=True,
        )
    if result.timing is not None:
        for line in _timing_lines(result.timing):
            _out.print(f"  {line}", soft_wrap=True)
    verdict = Text.assemble((result.verdict.value, f"bold {_COLOUR[result.verdict]}"), f": {result.reason}")
    _out.print(verdict, soft_wrap=True)
    for help_ in result.advice:
        _out.print(f"  would help: {help_}", soft_wrap=True)


def _launches(count: int) -> str:
    return f"{count} launch{'es' if count != 1 else ''}"


def _timing_lines(timing: Timing) -> Iterator[str]:
    launches = _launches(len(timing.launches))
    if timing.launches:
        launches += f" of {timing.rounds:g} rounds in turns"
    yield f"{timing.batch} x {timing.tokens} tokens, {timing.threads} threads, {launches}, {timing.took:.0f} s"
    if timing.launches:
        yield f"baseline {timing.baseline_seconds * 1e3:9.3f} ms"
        yield f"bundle   {timing.candidate_seconds * 1e3:9.3f} ms{_measured(timing.estimate)}"
    if timing.estimate.noise is not None:
        itself = ends(timing.estimate.noise)
        yield f"noise    {percent(timing.estimate.floor):>12}  the baseline against itself: {itself}"


def _measured(estimate: Estimate) -> str:
    if estimate.ratio is None:
        return ""
    return f"  {change(estimate.ratio.middle)}, 95 % interval {ends(estimate.ratio)}"


def to_json(result: CheckResult) -> str:
    """JSON text: versioned, and never without the machine that it was measured on."""
    plain = asdict(result)
    plain |= {"verdict": result.verdict.value, "exit_code": result.verdict.exit_code, "schema_version": SCHEMA_VERSION}
    if result.timing is not None:
        noise = result.timing.estimate
        plain["timing"]["estimate"]["verdict"] = noise.verdict.value
        plain["timing"]["estimate"]["floor"] = None if noise.noise is None else noise.floor
        if result.timing.launches:
            plain["timing"]["baseline_seconds"] = result.timing.baseline_seconds
            plain["timing"]["candidate_seconds"] = result.timing.candidate_seconds
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def to_junit(result: CheckResult) -> str:
    """JUnit XML: one case for what is deterministic, one for the clock.

    A regression is a failure; a case without an answer is skipped, for it must neither pass nor break a build by
    itself.
    """
    by_fact = [str(item) for item in result.differences if item.regression]
    slower = result.verdict is Verdict.REGRESSION and not by_fact
    untold = result.reason if result.verdict is Verdict.CANNOT_TELL else "decided without a clock" if by_fact else ""
    seconds = f"{result.timing.took if result.timing else 0:.3f}"
    suite = ET.Element(
        "testsuite",
        name=_TITLE,
        tests="2",
        failures=str(int(bool(by_fact)) + int(slower)),
        errors="0",
        skipped=str(int(bool(untold))),
        time=seconds,
    )
    properties = ET.SubElement(suite, "properties")
    machine = result.machine
    told = {
        "bundle": result.bundle,
        "baseline": result.baseline,
        "by": f"{result.by:g}",
        "verdict": result.verdict.value,
        "cpu": machine.cpu,
        "cores": str(machine.cores),
        "system": machine.system,
        "onnxruntime": machine.versions.get("onnxruntime", "unknown"),
    }
    for name, value in told.items():
        ET.SubElement(properties, "property", name=name, value=_xml(value))
    facts = ET.SubElement(suite, "testcase", classname="coda_compile.regression", name="facts", time="0")
    if by_fact:
        ET.SubElement(facts, "failure", message=_xml("; ".join(by_fact)))
    latency = ET.SubElement(suite, "testcase", classname="coda_compile.regression", name="latency", time=seconds)
    if slower:
        ET.SubElement(latency, "failure", message=_xml(result.reason))
    elif untold:
        ET.SubElement(latency, "skipped", message=_xml("; ".join((untold, *result.advice))))
    notes = [str(item) for item in result.differences if not item.regression]
    if notes:
        ET.SubElement(facts, "system-out").text = _xml("\n".join(notes))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written.decode("utf-8") + "\n"


def _xml(text: str) -> str:
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def annotations(result: CheckResult) -> list[str]:
    """GitHub's workflow commands: one line, which GitHub shows beside the pull request."""
    message = "; ".join((f"{result.verdict.value}: {result.reason}", *(f"would help: {x}" for x in result.advice)))
    return [f"::{_LEVEL[result.verdict]} title={_property(_TITLE)}::{_data(message)}"]


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def to_markdown(result: CheckResult) -> str:
    """The job summary."""
    lines = [
        f"### {_TITLE}: {result.verdict.value}",
        "",
        f"{_cell(result.bundle)} against {_cell(result.baseline)}: {_cell(result.reason)}",
        "",
    ]
    if result.differences:
        lines += ["| | baseline | bundle | |", "|---|---|---|---|"]
        for item in result.differences:
            cells = (item.what, item.before, item.after, "regression" if item.regression else "note")
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        lines.append("")
    if result.timing is not None:
        lines += [f"- {_cell(line)}" for line in _timing_lines(result.timing)]
    lines += [f"- would help: {_cell(help_)}" for help_ in result.advice]
    machine = result.machine
    lines.append(f"- measured on {_cell(machine.cpu)}, {machine.cores} cores, {_cell(machine.system)}")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text as it is, in a Markdown table that also takes HTML."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", plain)


def tell_github(result: CheckResult, environment: Mapping[str, str] = os.environ) -> None:
    """Annotate the run and append to the job's summary, where this is a GitHub job."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return
    for line in annotations(result):
        _out.print(line, soft_wrap=True)
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(to_markdown(result))
