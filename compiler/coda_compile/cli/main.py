"""The command line: parse and call, nothing else."""

import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import click

from coda_compile import __version__, terminal
from coda_compile.cli.kernels import kernels
from coda_compile.cli.measure import measure
from coda_compile.cli.run import run
from coda_compile.cli.target_option import TargetOption
from coda_compile.errors import CodaError, CompileWarning, as_sentences
from coda_compile.precision import UNQUANTISED, precision_names
from coda_ops.files import remove_leftovers

_show_warning = warnings.showwarning
_BUDGET = 0.5  # points
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _DefaultGroup(click.Group):
    """A group whose first argument may be a model instead of a command: then the command is compile.

    Without any argument it shows its help.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = args or ["--help"]
        if args[0] not in self.commands and args[0] not in ("-h", "--help", "--version"):
            args = ["compile", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultGroup, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="coda-compile")
def cli() -> None:
    """Compile conditional-adapter (CoDA) transformers into verified, fast ONNX bundles.

    \b
    coda-compile model.pt --target cpu -o DIR    compile (the default command)
    coda-compile run DIR "some text"             predict with a bundle
    coda-compile inspect DIR                     what is inside
    coda-compile verify DIR                      is it intact, and right on this machine?
    coda-compile evaluate DIR --data FILE        how right, and does it know what it does not know?
    coda-compile bench model.pt                  how fast, against the dense adapter in every runtime?
    coda-compile check DIR --against OLD         is it slower than it was? for CI
    coda-compile explain DIR                     where the time goes, layer by layer
    coda-compile report DIR                      all of it on one page
    coda-compile kernels build                   native kernels for this machine's CPU

    A bundle is a folder with model.onnx, its tokenizer, and the proof that it computes what the model did. It needs
    onnxruntime to run, no torch. `coda-compile COMMAND --help` tells more.
    """


@cli.command(short_help="Turn a model into a verified bundle.")
@click.argument("models", metavar="MODEL…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", "-t", cls=TargetOption, help="Where it will run:")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Bundle folder.  [default: MODEL-TARGET]")
@click.option(
    "--add-to", type=click.Path(path_type=Path), help="Add MODEL to a bundle of several tasks, and touch nothing else."
)
@click.option("--backbone", metavar="PATH", help="Folder or hub name of a delta checkpoint's backbone.")
@click.option("--tokenizer", metavar="PATH", help="Folder of a tokenizer to use instead of the model's own.")
@click.option(
    "--problem-type",
    type=click.Choice(("single_label_classification", "multi_label_classification", "regression")),
    help="What the logits stand for, where the model does not say so.",
)
@click.option("--labels", help="Names of the classes in order of the logits, as no,yes.  [default: the model's]")
@click.option(
    "--precision",
    "-p",
    default=UNQUANTISED,
    show_default=True,
    help=f"Of the frozen layers: {', '.join(precision_names())}, or auto to choose by measuring on --data.",
)
@click.option(
    "--calibrate",
    "calibration",
    type=click.Path(path_type=Path),
    help="CSV file, text (and text_pair), for int8-static and --prune-gates; auto then tries int8-static too.",
)
@click.option(
    "--prune-gates",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Take away slots whose gates stay under this in all texts of --calibrate.",
)
@click.option("--reduction", "-r", help="Run at another r than trained: 4, 7/2, or one a layer as 2,2,4,4. 1 is dense.")
@click.option("--pack", is_flag=True, help="For batches of texts of different lengths: multiply no padding.")
@click.option("--ood", metavar="SCORE", help="Also tell unknown texts: msp, energy, maxlogit, cosine, mahalanobis.")
@click.option(
    "--ood-data",
    "known",
    multiple=True,
    type=click.Path(path_type=Path),
    help="CSV file, text,label (and text_pair): texts MODEL is meant for. Of several, repeat in their order.",
)
@click.option("--data", type=click.Path(path_type=Path), help="CSV file, text,label (and text_pair), for auto.")
@click.option(
    "--accuracy-budget",
    "budget",
    type=click.FloatRange(0, 100),
    help=f"Points that auto may lose.  [default: {_BUDGET}]",
)
def compile(
    models: tuple[Path, ...],
    target: str | None,
    output: Path | None,
    add_to: Path | None,
    backbone: str | None,
    tokenizer: str | None,
    problem_type: str | None,
    labels: str | None,
    precision: str,
    calibration: Path | None,
    prune_gates: float | None,
    reduction: str | None,
    pack: bool,
    ood: str | None,
    known: tuple[Path, ...],
    data: Path | None,
    budget: float | None,
) -> None:
    """Compile MODEL, a model.pt, a CoDA checkpoint folder, a Hugging Face folder, adapters that PEFT or AdapterHub
    saved, or an ONNX file of another exporter, into a verified bundle. Several CoDA checkpoints of one backbone become
    one bundle: the backbone once, and a small file for each task, named after its checkpoint.

    \b
    coda-compile reviews.pt --target cpu -o reviews-cpu
    coda-compile reviews.pt --backbone ./all-MiniLM-L6-v2 -o reviews-cpu
    coda-compile intents.pt topics.pt -o both            two tasks, one backbone
    coda-compile moods.pt --add-to both                  a third one, later
    coda-compile lora-folder --backbone ./base           LoRA merged, at no cost
    coda-compile toxicity-lora --problem-type multi_label_classification --labels toxic,spam,rude
    coda-compile lora.onnx                               the same, from what another exporter wrote
    coda-compile reviews.pt -r 1 -o reviews-dense        the dense-adapter baseline
    coda-compile reviews.pt --precision int8             smaller, and faster where the CPU multiplies bytes
    coda-compile reviews.pt --precision int8-static --calibrate train.csv
    coda-compile reviews.pt --precision int4             the smallest file
    coda-compile reviews.pt --prune-gates 0.1 --calibrate train.csv
    coda-compile reviews.pt --ood energy --ood-data train.csv
    coda-compile reviews.pt --precision auto --data test.csv --accuracy-budget 0.5

    With auto, precision and r are chosen by measuring accuracy and latency of candidates on your own texts: the
    fastest one that loses no more than the budget against the model as it was trained. For models that take pairs of
    texts every CSV file has a column text_pair too.
    """
    from coda_targets.runtimes import DEFAULT_TARGET, get_runtime

    target = get_runtime(target or DEFAULT_TARGET).name  # the first mistake to hear of, before torch is loaded
    if precision == "auto" and data is None:
        raise click.UsageError("--precision auto measures on texts of yours: give a CSV file with --data FILE")
    if precision != "auto" and (data is not None or budget is not None):
        raise click.UsageError("--data and --accuracy-budget are for --precision auto")
    if precision == "auto" and prune_gates is not None:
        raise click.UsageError("--precision auto tries other r itself: leave --prune-gates out")
    names = [_stem(path) for path in models]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise click.UsageError(f"two tasks would be named {twice!r}: rename one of the checkpoints")
    if (problem_type or labels) and (len(models) > 1 or add_to is not None):
        raise click.UsageError("--problem-type and --labels are one model's: set them in each model before it is saved")
    if len(models) > 1 and data is not None:
        raise click.UsageError("--precision auto chooses for one model: compile each by itself")
    if len(known) not in (0, len(models)):
        raise click.UsageError("give --ood-data once for each MODEL, in their order")
    texts = dict(zip(names, known, strict=False)) if len(models) > 1 and known else next(iter(known), None)
    model, folder = models[0], output or Path(f"{'-'.join(names)}-{target}")
    progress = terminal.Progress()
    if add_to is not None:
        _add(models, add_to, backbone, progress)
        return
    with progress.stage("start"):
        import torch  # noqa: F401  first, because transformers prints advice of its own where torch is absent

        from coda_compile.pipeline import compile as compile_model
        from coda_compile.sources import read_tokenizer
    words = None if tokenizer is None else read_tokenizer(tokenizer)
    classes = None if labels is None else [name.strip() for name in labels.split(",")]
    if data is None:
        bundle = compile_model(
            model if len(models) == 1 else dict(zip(names, models, strict=True)),
            target,
            output=folder,
            backbone=backbone,
            tokenizer=words,
            problem_type=problem_type,
            labels=classes,
            reduction=_reduction(reduction),
            precision=precision,
            calibration=calibration,
            prune_gates=prune_gates,
            pack=pack,
            ood=ood,
            ood_data=texts,
            stage=progress.stage,
        )
    else:
        from coda_compile.backends import get_backend
        from coda_compile.cli import choice_table
        from coda_compile.sources import read_source
        from coda_compile.sources.classes import set_classes
        from coda_compile.tune.choice import choose

        with progress.stage("load"):
            source = read_source(model, backbone=backbone)
            set_classes(source.model, problem_type, classes)
        choice = choose(
            source.model,
            get_backend(target),
            data=data,
            budget=_BUDGET if budget is None else budget,
            output=folder,
            tokenizer=words or source.tokenizer,
            reduction=_reduction(reduction),
            calibration=calibration,
            pack=pack,
            ood=ood,
            ood_data=next(iter(known), None),
            stage=progress.stage,
        )
        choice_table.show(choice)
        bundle = choice.bundle
    terminal.compiled(bundle, folder, progress.seconds)


def _add(models: tuple[Path, ...], folder: Path, backbone: str | None, progress: terminal.Progress) -> None:
    from coda_targets import Bundle

    remove_leftovers(folder.resolve().parent)  # where a killed process may have left the bundle aside
    bundle = Bundle(folder)
    with progress.stage("start"):
        from coda_compile.bundling.add_task import add_task
    for path in models:
        name = _stem(path)
        bundle = add_task(bundle, name, path, backbone=backbone, stage=progress.stage)
    terminal.compiled(bundle, folder, progress.seconds)


def _stem(path: Path) -> str:
    return path.resolve().name.removesuffix(".pt").removesuffix(".onnx")


def _reduction(text: str | None) -> str | list[str] | None:
    return text.split(",") if text and "," in text else text


@cli.command(short_help="Is a bundle intact, and right on this machine?")
@click.argument("bundle", type=click.Path(path_type=Path))
def verify(bundle: Path) -> None:
    """Check every file of BUNDLE against its SHA-256, and its outputs on this machine against the expected ones: of
    every variant that this machine can run. It fails where it can run none.
    """
    from coda_compile.verify.reference_vectors import check_bundle, verify_outputs
    from coda_targets import Bundle, TargetError

    opened, proved = Bundle(bundle), False
    check_bundle(opened)
    for variant in opened.manifest.variants:
        if lacking := opened.lacks(variant):
            terminal.not_verified(variant, lacking)
            continue
        chosen, proved = Bundle(bundle, target=variant.target, precision=variant.precision), True
        for task in chosen.tasks or (None,):
            terminal.verified(verify_outputs(chosen, task), variant.name if task is None else task)
    if not proved:
        raise TargetError(f"no variant of {bundle} runs here, so that its outputs were not verified")


@cli.command(short_help="What is inside a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
def inspect(bundle: Path) -> None:
    """Summarise BUNDLE: operators, tokens routed in each layer, multiply-adds against dense, sizes."""
    from coda_targets import Bundle

    terminal.inspected(Bundle(bundle))


for _command in (run, *measure.commands.values(), kernels):
    cli.add_command(_command)


def main() -> None:
    """Entry point: a mistake of the user's ends in one sentence and a non-zero status."""
    for name in ("SIGTERM", "SIGHUP"):  # end as Ctrl-C does, and leave nothing half written
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _terminate)
    warnings.showwarning = _tell
    try:
        with as_sentences():
            cli.main(standalone_mode=False)
    except CodaError as error:
        _end(str(error), 1)
    except click.UsageError as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        _end(f"{error.format_message()}{hint}", 2)
    except click.ClickException as error:
        _end(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # to click that is an interrupt, too; here nobody is asked anything
            raise error.__cause__ from None
        _end("interrupted, nothing half-written was kept", 130)


def _tell(message: Warning | str, category: type[Warning], *where: Any, **also: Any) -> None:
    """Show a warning of the compiler's as a sentence, and others as Python does."""
    if issubclass(category, CompileWarning):
        click.echo(f"coda-compile: {message}", err=True)
    else:
        _show_warning(message, category, *where, **also)


def _end(message: str, status: int) -> None:
    click.echo(f"coda-compile: {message}", err=True)
    sys.exit(status)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
