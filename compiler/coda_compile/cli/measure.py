"""Commands that measure: bench, check, explain, report. Parse and call, nothing else."""

import shlex
import sys
from pathlib import Path

import click

from coda_compile.cli.target_option import TargetOption
from coda_compile.cli.variant import variant_options
from coda_compile.precision import precision_names


@click.command(short_help="Compare latency with the dense model in other runtimes.")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--shape", help="Instead of MODEL, random weights of a known size: bert-base, minilm-l6, …")
@click.option(
    "--backbone", metavar="PATH", help="Folder or hub name of the backbone, for a delta checkpoint or an adapter."
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="The checkpoint that a bundle was made from, for the dense baselines.",
)
@click.option(
    "--reduction",
    "-r",
    "reductions",
    multiple=True,
    help="Reduction factor r; repeat for several.  [default: as trained]",
)
@click.option(
    "--target",
    "-t",
    "targets",
    multiple=True,
    cls=TargetOption,
    help="Runtime to compile for, or of a bundle's variant; repeat for several:",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    help="Batch size; repeat for several.  [default: 1; on a GPU 1, 8 and 32]",
)
@click.option(
    "--tokens",
    multiple=True,
    type=click.IntRange(1),
    help="Sequence length; repeat for several.  [default: 128 and 512]",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(precision_names()),
    help="Precision to compile in, or of a bundle's variant; repeat for several.  "
    "[default: fp32 and int8; on a GPU fp16]",
)
@click.option(
    "--skip", multiple=True, metavar="NAME", help="Baseline to leave out, e.g. 'torch.compile'; repeat for several."
)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(4), help="Rounds per input.")
@click.option("--threads", default=0, type=click.IntRange(0), help="Threads of each contender.  [default: all cores]")
@click.option(
    "--json", "result_file", type=click.Path(path_type=Path), help="Write the result as JSON, for report --bench."
)
def bench(
    model: Path | None,
    shape: str | None,
    backbone: str | None,
    checkpoint: Path | None,
    reductions: tuple[str, ...],
    targets: tuple[str, ...],
    batches: tuple[int, ...],
    tokens: tuple[int, ...],
    precisions: tuple[str, ...],
    skip: tuple[str, ...],
    rounds: int,
    threads: int,
    result_file: Path | None,
) -> None:
    """Compare the latency of MODEL, compiled, with the dense model in torch, onnxruntime, optimum and OpenVINO, in
    fp32 and int8; for a target of GPUs in torch and onnxruntime, in fp16.

    MODEL is a checkpoint, or a bundle to measure as it is. Every contender has its own process. They run in turns, one
    at a time, on the same inputs with the same number of threads. Inputs and outputs lie in the CPU's memory.

    \b
    coda-compile bench reviews.pt --json bench.json
    coda-compile bench reviews-cpu --checkpoint reviews.pt --tokens 512
    coda-compile bench --shape bert-base -r 4 -r 8
    coda-compile bench reviews.pt --target cpu --target openvino
    coda-compile bench reviews.pt --target cuda
    """
    if (model is None) == (shape is None):
        raise click.UsageError("give a model, a bundle or --shape NAME, one of them")
    from coda_ops.files import check_result_file, write_text

    if result_file is not None:
        check_result_file(result_file, b"{")
    from coda_compile.bench.plan import Plan
    from coda_compile.terminal import Progress

    plan = Plan(reductions, batches, tokens, precisions, rounds, threads, skip, targets)
    plan.check()
    progress = Progress()
    with progress.stage("start"):
        import torch  # noqa: F401  first, because transformers prints advice of its own where torch is absent

        from coda_compile.bench import table
        from coda_compile.bench.run import bench as measure_all
        from coda_compile.bench.shapes import random_model
        from coda_compile.sources import read_source
        from coda_models import CodaModel
        from coda_targets import Bundle
        from coda_targets.manifest import MANIFEST
    with progress.stage("load"):
        dense = None if checkpoint is None else read_source(checkpoint, backbone=backbone).model
        subject: CodaModel | Bundle
        fidelity = None
        if model is None:
            subject = random_model(str(shape))
        elif (model / MANIFEST).is_file():
            subject = Bundle(model)
        else:
            source = read_source(model, backbone=backbone)
            subject, fidelity = source.model, source.fidelity
    result = measure_all(
        subject,
        dense=dense,
        fidelity=fidelity,
        plan=plan,
        name=shape or Path(str(model)).name,
        command=shlex.join(["coda-compile", *sys.argv[1:]]),
        stage=progress.stage,
    )
    table.show(result)
    if result_file is not None:
        write_text(result_file, result.dump())


@click.command(short_help="Check for a latency regression against a baseline, for CI.")
@click.argument("bundle", type=click.Path(path_type=Path))
@variant_options
@click.option(
    "--against", required=True, metavar="BASELINE", help="Baseline: a bundle, or a git ref with --build-baseline."
)
@click.option(
    "--build-baseline",
    metavar="COMMAND",
    help="Command that builds the baseline in a checkout of the ref, and writes it to $CODA_OUTPUT.",
)
@click.option("--by", default=0.05, show_default=True, help="Accepted slow-down, as a fraction.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Batch size of the timed input.")
@click.option("--tokens", type=click.IntRange(1), help="Length of the timed input.  [default: the longest]")
@click.option("--threads", default=0, type=click.IntRange(0), help="Threads of each process.  [default: all cores]")
@click.option("--launches", default=32, show_default=True, type=click.IntRange(4), help="Maximum number of launches.")
@click.option("--budget", default=300.0, show_default=True, type=click.FloatRange(1), help="Maximum time in seconds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result as JSON.")
@click.option("--junit", "junit_file", type=click.Path(path_type=Path), help="Write a JUnit XML report.")
def check(
    bundle: Path,
    target: str | None,
    precision: str | None,
    against: str,
    build_baseline: str | None,
    by: float,
    batch: int,
    tokens: int | None,
    threads: int,
    launches: int,
    budget: float,
    json_file: Path | None,
    junit_file: Path | None,
) -> None:
    """Decide whether BUNDLE is slower than a baseline.

    The check first compares what needs no clock: multiply-adds, bytes, lost fusions, nodes placed elsewhere. Then it
    times both bundles in turns, in fresh processes, until an interval decides. It also times the baseline against
    itself: a threshold below that noise gives no verdict. In a GitHub job it annotates the run.

    \b
    coda-compile check build/reviews-cpu --against released/reviews-cpu
    coda-compile check build/reviews-cpu --against origin/main --build-baseline 'make bundle OUT="$CODA_OUTPUT"'

    \b
    Exit codes
    0  no regression
    1  an error, in one sentence
    2  wrong usage
    3  regression
    4  cannot tell on this machine; the output says what would help
    """
    from coda_ops.files import check_result_file, write_text

    if json_file is not None:
        check_result_file(json_file, b"{")
    if junit_file is not None:
        check_result_file(junit_file, b"<")
    from coda_compile.regression import outputs
    from coda_compile.regression.baseline import baseline_bundle
    from coda_compile.regression.check import check as check_latency
    from coda_targets import Bundle

    opened = Bundle(bundle, target=target, precision=precision)
    with baseline_bundle(against, build_baseline, Path.cwd()) as baseline, outputs.watching() as on_launch:
        result = check_latency(
            opened,
            Bundle(baseline, target=target, precision=precision),
            by=by,
            batch=batch,
            tokens=tokens,
            threads=threads,
            launches=launches,
            budget=budget,
            baseline_name=against,
            on_launch=on_launch,
        )
    outputs.show(result)
    outputs.tell_github(result)
    if json_file is not None:
        write_text(json_file, outputs.to_json(result))
    if junit_file is not None:
        write_text(junit_file, outputs.to_junit(result))
    sys.exit(result.verdict.exit_code)


@click.command(short_help="Show where the time goes, layer by layer.")
@click.argument("bundle", type=click.Path(path_type=Path))
@variant_options
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Batch size of the profiled input.")
@click.option("--tokens", type=click.IntRange(1), help="Length of the profiled input.  [default: the longest]")
@click.option(
    "--runs", default=10, show_default=True, type=click.IntRange(1), help="Profiled runs, after one warm-up run."
)
@click.option("--threads", default=0, type=click.IntRange(0), help="Threads.  [default: onnxruntime's choice]")
def explain(
    bundle: Path,
    target: str | None,
    precision: str | None,
    batch: int,
    tokens: int | None,
    runs: int,
    threads: int,
) -> None:
    """Show for each layer of BUNDLE where the time goes, which operators run where, and what onnxruntime fused.

    \b
    coda-compile explain reviews-cpu
    coda-compile explain reviews-cpu --tokens 128 --threads 1
    """
    from coda_compile.cli import explain_table
    from coda_compile.inspect.explain import explain as explain_profile
    from coda_compile.inspect.profile import profile_bundle
    from coda_targets import Bundle

    opened = Bundle(bundle, target=target, precision=precision)
    profile = profile_bundle(opened, batch=batch, tokens=tokens, runs=runs, threads=threads)
    explain_table.show(explain_profile(profile))


@click.command(short_help="Write one self-contained HTML page about a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@variant_options
@click.option("--bench", type=click.Path(path_type=Path), help="JSON of coda-compile bench --json.")
@click.option("--text", help="Show the routing of this text.  [default: a short review]")
@click.option("--data", type=click.Path(path_type=Path), help="CSV with text,label (and text_pair): adds accuracy.")
@click.option(
    "--threads", default=0, type=click.IntRange(0), help="Threads of the profile.  [default: the benchmark's]"
)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="HTML file.  [default: BUNDLE-report.html beside BUNDLE]"
)
def report(
    bundle: Path,
    target: str | None,
    precision: str | None,
    bench: Path | None,
    text: str | None,
    data: Path | None,
    threads: int,
    output: Path | None,
) -> None:
    """Write one HTML page about BUNDLE that needs no network: latency and its bound, where the time goes, memory,
    passes, parity, routing, and how to reproduce all of it.

    \b
    coda-compile bench reviews.pt --json bench.json
    coda-compile report reviews-cpu --bench bench.json --data test.csv
    """
    from coda_compile.terminal import Progress, out

    progress = Progress()
    with progress.stage("start"):
        from coda_compile.report.page import make_report
        from coda_targets import Bundle
    folder = bundle.resolve()
    written = make_report(
        Bundle(bundle, target=target, precision=precision),
        output or folder.with_name(f"{folder.name}-report.html"),
        bench=bench,
        text=text,
        data=data,
        threads=threads,
        command=shlex.join(["coda-compile", *sys.argv[1:]]),
        stage=progress.stage,
    )
    out.print(f"{written}: {written.stat().st_size / 1e6:.1f} MB, opens in any browser", soft_wrap=True)
