"""The command line: its commands, and how each of them ends."""

import signal
import sys
import warnings
from types import FrameType
from typing import Any

import click

from coda_compile.cli.bundles import evaluate, inspect, verify
from coda_compile.cli.compile import compile
from coda_compile.cli.kernels import kernels
from coda_compile.cli.measure import bench, check, explain, report
from coda_compile.cli.route import route
from coda_compile.cli.run import run
from coda_compile.cli.train import train
from coda_compile.errors import CodaError, OptionError, as_sentences
from coda_ops.errors import CodaWarning

_show_warning = warnings.showwarning
_FLAGS = {"calibration": "--calibrate", "stand_in": "--rank"}  # of options that have another name on the command line
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
@click.version_option(package_name="coda-compile", prog_name="coda-compile")
def cli() -> None:
    """Compile transformer encoders, above all conditional-adapter (CoDA) models, into fast, verified ONNX bundles.

    \b
    coda-compile model.pt --target cpu -o DIR    compile (the default command)
    coda-compile route MODEL --texts FILE        make a routed checkpoint of a dense model, without labels
    coda-compile train DATA --backbone NAME      make one from labelled texts
    coda-compile run DIR "some text"             predict
    coda-compile inspect DIR                     show what a bundle holds
    coda-compile verify DIR                      check files and outputs on this machine
    coda-compile evaluate DIR --data FILE        measure accuracy and out-of-distribution detection
    coda-compile bench model.pt                  compare latency with the dense model in other runtimes
    coda-compile check DIR --against OLD         regression check, for CI
    coda-compile explain DIR                     show where the time goes, layer by layer
    coda-compile report DIR                      write one HTML page with all results
    coda-compile kernels build                   build native kernels for this machine's CPU
    coda-compile COMMAND --help                  describe a command

    A bundle is a folder with an ONNX model, its tokenizer, and reference inputs and outputs to verify it. It runs in
    onnxruntime, without torch.
    """


for _command in (compile, route, train, run, inspect, verify, evaluate, bench, check, explain, report, kernels):
    cli.add_command(_command)


def flag(option: str) -> str:
    """How an option of ``CompileOptions`` is spelt on the command line."""
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")


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
    except OptionError as error:
        _end(error.spelt(flag), 1)
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
        _end(str(error.__cause__ or error) or "interrupted, nothing half-written was kept", 130)


def _tell(message: Warning | str, category: type[Warning], *where: Any, **also: Any) -> None:
    """Show a warning of ours as a sentence, and others as Python does."""
    if issubclass(category, CodaWarning):
        click.echo(f"coda-compile: {message}", err=True)
    else:
        _show_warning(message, category, *where, **also)


def _end(message: str, status: int) -> None:
    click.echo(f"coda-compile: {message}", err=True)
    sys.exit(status)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
