"""Assemble the page and write it atomically."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from coda_compile.bench.machine import Machine, this_machine
from coda_compile.bench.result import BenchResult, read_result
from coda_compile.bundling.build_report import BuildReport, PassReport, read_report
from coda_compile.errors import CodaError, as_sentences
from coda_compile.inspect.accuracy import Accuracy, measure
from coda_compile.inspect.explain import Explanation, explain, layer_ranges
from coda_compile.inspect.profile import profile_bundle
from coda_compile.report import charts, inside_charts
from coda_compile.report.formats import Table, percent, size
from coda_compile.report.plots import Plot
from coda_compile.report.routing_map import MOST_WORDS, SAMPLE, RoutedText, route_text
from coda_compile.report.summary import cards, headline, reference_of, verdict
from coda_ops.files import check_result_file, replacing_file
from coda_targets import Bundle, BundleError
from coda_targets.modalities.text import TOKENIZER

Stage = Callable[[str], AbstractContextManager[object]]


@as_sentences()
def make_report(
    bundle: Bundle,
    output: Path,
    *,
    bench: Path | None = None,
    text: str | None = None,
    data: Path | None = None,
    threads: int = 0,
    command: str = "",
    stage: Stage = nullcontext,
) -> Path:
    """Write one self-contained HTML page about a bundle.

    Args:
        output: the file; an earlier page there is replaced, any other file is refused.
        bench: what ``coda-compile bench --json`` wrote.
        text: to show the routing of; by default a short review.
        data: a CSV file with the columns ``text`` and ``label``, to measure accuracy on.
        threads: for the profile; 0 for the benchmark's number, or onnxruntime's own choice without one.
        command: what made the report, for people.
        stage: called with each stage's name, gives a context that lasts as long as the stage.

    Raises:
        CodaError: an output that cannot be written, or a bundle, benchmark or data set that cannot be read.
    """
    check_result_file(output, b"<")
    result = None if bench is None else _read_bench(bench, bundle)
    report = read_report(bundle.folder)
    if bundle.variant.name not in report.variants:
        raise BundleError(
            f"{bundle.folder} has no report of its variant {bundle.variant.name}: compile the model again"
        )
    with stage("check"):
        bundle.check()
    with stage("profile"):
        explanation = explain(profile_bundle(bundle, threads=threads or (result.threads if result else 0)))
    with stage("routing"):
        can_read = text is not None or (bundle.folder / TOKENIZER).is_file()
        routed = route_text(bundle, SAMPLE if text is None else text) if can_read else None
    with stage("accuracy"):
        accuracy = None if data is None else measure(bundle, data)
    with stage("page"):
        page = _render(bundle, result, report, explanation, routed, accuracy, command)
        with replacing_file(output) as new:
            new.write_bytes(page.encode("utf-8", "replace"))  # names of folders may be any bytes
    return output


def _read_bench(path: Path, bundle: Bundle) -> BenchResult:
    """A benchmark of the bundle's model, on whatever machine and at whatever r, precision and target."""
    result = read_result(path)
    if result.model_sha256 != bundle.manifest.model_sha256:
        raise CodaError(
            f"{path} measured {result.model!r}, another model than {bundle.folder} was compiled from: measure that one "
            "with coda-compile bench MODEL --json FILE"
        )
    return result


def _render(
    bundle: Bundle,
    result: BenchResult | None,
    report: BuildReport,
    explanation: Explanation,
    routed: RoutedText | None,
    accuracy: Accuracy | None,
    command: str,
) -> str:
    manifest, profile, here = bundle.manifest, explanation.profile, this_machine()
    found = None if result is None else headline(result, bundle)
    line, facts = verdict(found, result, manifest)
    made = report.variants[bundle.variant.name]
    differences = [value for case in made.parity.cases for value in case.outputs.values()]
    map_ = inside_charts.routing(routed.words, MOST_WORDS) if routed and routed.words.layers else None
    environment = Environment(
        loader=PackageLoader("coda_compile", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _script_json
    return environment.get_template("report.html.j2").render(
        name=bundle.folder.resolve().name,
        manifest=manifest,
        variant=bundle.variant,
        verdict=line,
        facts=facts,
        cards=cards(manifest, found, profile, differences, made.parity.tolerances, accuracy),
        bench=result,
        elsewhere=[] if result is None else here.differences(result.machine),
        latency=_latency(result),
        speed_ups=_speed_ups(result),
        memory=_memory(result),
        profile=profile,
        kernel_share=percent(profile.kernel_seconds / profile.run_seconds),
        time=[inside_charts.time_by_layer(profile), inside_charts.time_by_operator(profile)],
        pruning=report.pruning,
        passes=_passes(made.passes),
        fusions=_fusions(explanation),
        parity=inside_charts.parity(made.parity.cases, made.parity.tolerances),
        routed=routed,
        routing=map_,
        drawn=MOST_WORDS,
        accuracy=accuracy,
        confusion=None if accuracy is None else _confusion(accuracy),
        files=_files(bundle),
        machine=_machine(here),
        bench_machine=None if result is None else _machine(result.machine),
        command=command,
        config=json.dumps(manifest.coda_config, indent=2, sort_keys=True, ensure_ascii=False),
        plotly=Markup(get_plotlyjs()),
    )


def _script_json(plot: Plot) -> Markup:
    """A figure as JSON that cannot end the script element that holds it."""
    text = plot.figure.to_json()
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _latency(result: BenchResult | None) -> list[Plot]:
    if result is None:
        return []
    cases = groupby(sorted(result.measurements, key=lambda m: (m.batch, m.tokens)), lambda m: (m.batch, m.tokens))
    return [charts.latency(list(rows), f"latency-{batch}-{tokens}") for (batch, tokens), rows in cases]


def _speed_ups(result: BenchResult | None) -> list[Plot]:
    reference = None if result is None else reference_of(result)
    if result is None or reference is None:
        return []
    smallest = min(m.batch for m in result.measurements)
    plots = [charts.speed_up(result, reference, against="tokens", batch=smallest)]
    if len({charts.one_number(m.reduction) for m in result.measurements if not m.speed_up} - {None}) > 1:
        plots.append(charts.speed_up(result, reference, against="r", batch=smallest))
    return plots


def _memory(result: BenchResult | None) -> Plot | None:
    if result is None:
        return None
    first = result.measurements[0]
    same = [m for m in result.measurements if (m.batch, m.tokens) == (first.batch, first.tokens)]
    return charts.memory(same)


def _passes(passes: Sequence[PassReport]) -> Table:
    rows = []
    for item in passes:
        changes = ", ".join(f"{name} {count:+d}".replace("-", "−") for name, count in item.operators.items())
        done = (changes or "changed no operator count") if item.modified else "found nothing to change"
        done += "".join(f"; declined {count}: {reason}" for reason, count in item.declined.items())
        rows.append((item.name, done, str(item.nodes)))
    caption = "In order; changes in the count of each operator, and the nodes that were left."
    return Table(caption, ("pass", "what it did", "nodes after"), rows, names=2)


def _fusions(explanation: Explanation) -> Table:
    lines: dict[tuple[str, int], list[int | None]] = {}
    for row in explanation.layers:
        for name, count in row.fused.items():
            lines.setdefault((name, count), []).append(row.layer)
    rows = [(name, layer_ranges(layers), str(count)) for (name, count), layers in lines.items()]
    caption = "What onnxruntime fused when it loaded the model here."
    return Table(caption, ("operator", "where", "in each"), rows, names=2)


def _confusion(accuracy: Accuracy) -> Table:
    rows = []
    for true in accuracy.labels:
        counts = [accuracy.confusion.get((true, predicted), 0) for predicted in accuracy.labels]
        whole = sum(counts)
        right = accuracy.confusion.get((true, true), 0)
        rows.append((true, *map(str, counts), percent(right / whole) if whole else "no texts"))
    columns = ("label", *(f"as {name}" for name in accuracy.labels), "right")
    return Table("Texts of each label, by what the bundle said.", columns, rows)


def _files(bundle: Bundle) -> Table:
    rows = [(file.path, file.sha256, size(file.bytes)) for file in bundle.manifest.files]
    caption = "Every file of the bundle but its manifest."
    return Table(caption, ("file", "SHA-256", "size"), rows, names=2, hashes=True)


def _machine(machine: Machine) -> Table:
    rows = [
        *([("GPU", machine.gpu)] if machine.gpu else []),
        ("CPU", machine.cpu),
        ("cores", str(machine.cores)),
        ("instruction sets", " ".join(machine.instruction_sets) or "unknown"),
        ("memory", f"{machine.memory_bytes / 1e9:.1f} GB"),
        ("clock governor", machine.governor or "unknown"),
        ("system", machine.system),
        ("Python", machine.python),
        *sorted(machine.versions.items()),
    ]
    return Table("", ("what", "value"), rows, names=2)
