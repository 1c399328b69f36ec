"""The command that compiles. Parse and call, nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coda_compile.cli.model_options import label_list, model_options
from coda_compile.cli.target_option import TargetOption
from coda_compile.precision import UNQUANTISED, precision_names

if TYPE_CHECKING:
    from coda_compile.options import CompileOptions
    from coda_compile.terminal import Progress
    from coda_targets import Bundle

_BUDGET = 0.5  # points
_AUTO = "auto"


@click.command(short_help="Compile a model into a verified bundle.")
@click.argument("models", metavar="MODEL…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--target",
    "-t",
    "targets",
    multiple=True,
    cls=TargetOption,
    help="Runtime to compile for; repeat for several variants:",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Bundle folder.  [default: MODEL-TARGET]")
@click.option(
    "--add-to",
    type=click.Path(path_type=Path),
    help="Add MODEL as a task to this bundle of several tasks; the other tasks stay unchanged.",
)
@model_options
@click.option(
    "--precision",
    "-p",
    "precisions",
    multiple=True,
    help=f"Precision of the frozen linear layers; repeat for several variants: {', '.join(precision_names())}. "
    f"Or auto, which chooses by measuring on --data.  [default: {UNQUANTISED}]",
)
@click.option(
    "--calibrate",
    "calibration",
    type=click.Path(path_type=Path),
    help="Calibration data: CSV with text (and text_pair), for int8-static, --prune-gates and auto.",
)
@click.option(
    "--prune-gates",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Remove slots whose gates stay below this value on all of --calibrate.",
)
@click.option(
    "--reduction",
    "-r",
    help="Reduction factor r: 4, 7/2, or one per layer, e.g. 2,2,4,4. 1 is dense.  [default: as trained]",
)
@click.option(
    "--profile",
    metavar="LEAST,USUAL,MOST",
    help="Sizes of input, for TensorRT: e.g. 1x64,8x256,32x512, batch and length.  [default: up to 32 of the longest]",
)
@click.option(
    "--pack", is_flag=True, help="Skip padding in linear layers. Faster for batches of very different lengths."
)
@click.option(
    "--ood", metavar="SCORE", help="Add an out-of-distribution score: msp, energy, maxlogit, cosine, mahalanobis."
)
@click.option(
    "--ood-data",
    "ood_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="In-distribution data: CSV with text,label (and text_pair). For several MODELs repeat it in their order.",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Evaluation data for auto: CSV with text,label (and text_pair)."
)
@click.option(
    "--accuracy-budget",
    "budget",
    type=click.FloatRange(0, 100),
    help=f"Accuracy that auto may lose, in percentage points.  [default: {_BUDGET}]",
)
def compile(
    models: tuple[Path, ...],
    targets: tuple[str, ...],
    output: Path | None,
    add_to: Path | None,
    backbone: str | None,
    tokenizer: str | None,
    problem_type: str | None,
    labels: str | None,
    precisions: tuple[str, ...],
    calibration: Path | None,
    prune_gates: float | None,
    reduction: str | None,
    profile: str | None,
    pack: bool,
    ood: str | None,
    ood_files: tuple[Path, ...],
    data: Path | None,
    budget: float | None,
) -> None:
    """Compile MODEL into a verified bundle.

    MODEL is a CoDA checkpoint (model.pt or folder), a Hugging Face, sentence-transformers, PEFT or AdapterHub folder,
    or an ONNX file. Several CoDA checkpoints of one backbone become one bundle: the backbone once, and a small file
    for each task, named after its checkpoint.

    \b
    coda-compile reviews.pt --target cpu -o reviews-cpu
    coda-compile reviews.pt --backbone ./all-MiniLM-L6-v2 -o reviews-cpu
    coda-compile intents.pt topics.pt -o both            two tasks, one backbone
    coda-compile moods.pt --add-to both                  a third one, later
    coda-compile lora-folder --backbone ./base           LoRA is merged into the weights
    coda-compile toxicity-lora --problem-type multi_label_classification --labels toxic,spam,rude
    coda-compile lora.onnx                               the same, from an ONNX file
    coda-compile reviews.pt -r 1 -o reviews-dense        the dense baseline
    coda-compile reviews.pt --precision int8             smaller, and faster with native kernels
    coda-compile reviews.pt --precision int8-static --calibrate train.csv
    coda-compile reviews.pt --precision int4             the smallest file
    coda-compile reviews.pt -t cpu -t openvino -p fp32 -p int8       four variants in one bundle
    coda-compile reviews.pt --prune-gates 0.1 --calibrate train.csv
    coda-compile reviews.pt --ood energy --ood-data train.csv
    coda-compile reviews.pt --precision auto --data test.csv --accuracy-budget 0.5

    auto compiles candidates of several precisions and r, measures their accuracy and latency on your data, and takes
    the fastest that loses no more than the budget. CSV files for models of text pairs have a column text_pair too.
    """
    _check_auto(precisions, len(models), data, budget, prune_gates)
    names = [_stem(path) for path in models]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise click.UsageError(f"two tasks would be named {twice!r}: rename one of the checkpoints")
    if add_to is not None and (problem_type or labels):
        raise click.UsageError("--problem-type and --labels are one model's: set them in each model before it is saved")
    if len(ood_files) not in (0, len(models)):
        raise click.UsageError("give --ood-data once for each MODEL, in their order")
    from coda_compile.options import CompileOptions
    from coda_compile.terminal import Progress
    from coda_targets.runtimes import DEFAULT_TARGET, get_runtime

    targets = targets or (DEFAULT_TARGET,)
    for name in targets:
        get_runtime(name)  # the first mistake to hear of, before torch is loaded
    progress = Progress()
    if add_to is not None:
        _show(_add(models, add_to, backbone, progress), add_to, progress)
        return
    several = len(models) > 1
    options = CompileOptions(
        target=targets,
        precision=UNQUANTISED if data is not None else precisions or UNQUANTISED,
        backbone=backbone,
        problem_type=problem_type,
        labels=label_list(labels),
        reduction=_reduction(reduction),
        calibration=calibration,
        prune_gates=prune_gates,
        profile=profile,
        pack=pack,
        ood=ood,
        ood_data=dict(zip(names, ood_files, strict=False)) if several and ood_files else next(iter(ood_files), None),
    )
    folder = output or Path("-".join([*names, *targets]))
    with progress.stage("start"):
        import torch  # noqa: F401  first, because transformers prints advice of its own where torch is absent

        from coda_compile.pipeline import compile as compile_model
        from coda_compile.sources import read_tokenizer
    if tokenizer is not None:
        options = replace(options, tokenizer=read_tokenizer(tokenizer))
    if data is None:
        given = dict(zip(names, models, strict=True)) if several else models[0]
        bundle = compile_model(given, options, output=folder, stage=progress.stage)
    else:
        bundle = _choose(models[0], options, data, _BUDGET if budget is None else budget, folder, progress)
    _show(bundle, folder, progress)


def _check_auto(
    precisions: tuple[str, ...], models: int, data: Path | None, budget: float | None, prune_gates: float | None
) -> None:
    """Refuse ``auto`` without what it needs, and that without ``auto``."""
    if _AUTO not in precisions:
        if data is not None or budget is not None:
            raise click.UsageError("--data and --accuracy-budget are for --precision auto")
        return
    if len(precisions) > 1:
        raise click.UsageError("--precision auto tries every precision itself: give it alone")
    if data is None:
        raise click.UsageError("--precision auto measures on your data: give a CSV file with --data FILE")
    if prune_gates is not None:
        raise click.UsageError("--precision auto tries other r itself: leave --prune-gates out")
    if models > 1:
        raise click.UsageError("--precision auto chooses for one model: compile each by itself")


def _choose(
    model: Path, options: "CompileOptions", data: Path, budget: float, folder: Path, progress: "Progress"
) -> "Bundle":
    from coda_compile.cli import choice_table
    from coda_compile.tune.choice import choose

    choice = choose(model, options, data=data, budget=budget, output=folder, stage=progress.stage)
    choice_table.show(choice)
    return choice.bundle


def _add(models: Sequence[Path], folder: Path, backbone: str | None, progress: "Progress") -> "Bundle":
    from coda_ops.files import remove_leftovers
    from coda_targets import Bundle

    remove_leftovers(folder.resolve().parent)  # where a killed process may have left the bundle aside
    bundle = Bundle(folder)
    with progress.stage("start"):
        from coda_compile.bundling.add_task import add_task
    for path in models:
        bundle = add_task(bundle, _stem(path), path, backbone=backbone, stage=progress.stage)
    return bundle


def _show(bundle: "Bundle", folder: Path, progress: "Progress") -> None:
    from coda_compile.cli import summaries

    summaries.compiled(bundle, folder, progress.seconds)


def _stem(path: Path) -> str:
    return path.resolve().name.removesuffix(".pt").removesuffix(".onnx")


def _reduction(text: str | None) -> str | list[str] | None:
    return text.split(",") if text and "," in text else text
