"""Error rates of the regression check: false alarms of a bundle against itself, and slow-downs of 10 % that it detects.

python benchmarks/gate_rates.py --model examples/reviews.pt --backbone FOLDER [--runs 50] [--slow-runs 10]

The slow-down is real work: the last layer routes more tokens through its heavy path, so many that the whole model
takes about 10 % longer. Multiply-adds alone would give it away; only the clock is asked here. Every run is kept in
OUT/runs.json as it ends, and a second call goes on where the first was stopped.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import click

from coda_compile import Bundle, CompileOptions, compile
from coda_compile.bench.machine import this_machine
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.errors import CodaError
from coda_compile.inspect.cost import multiply_adds
from coda_compile.regression.ab import compare_latency
from coda_compile.regression.check import BY
from coda_compile.regression.verdict import Verdict

INJECTED = 0.10
LAUNCHES = 8  # of the measurement of what was injected; separate from the gate's own, which stop when they please
_DENOMINATORS = range(1, 9)


class Study:
    """Bundles, inputs and runs of one study, kept in a folder."""

    def __init__(self, model: Path, backbone: str | None, tokens: int, threads: int, folder: Path) -> None:
        self.model, self.backbone, self.tokens, self.threads, self.folder = model, backbone, tokens, threads, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.kept = folder / "runs.json"
        self.state: dict[str, Any] = json.loads(self.kept.read_text("utf-8")) if self.kept.is_file() else {}
        settings = {"model": str(model), "tokens": tokens, "threads": threads, "machine": asdict(this_machine())}
        settings = json.loads(json.dumps(settings))  # tuples become lists, as they are read
        if self.state.setdefault("settings", settings) != settings:
            raise CodaError(f"{self.kept} holds runs of another model, input or machine: give another --out")
        self.baseline = self.compiled("baseline", None)

    def keep(self) -> None:
        self.kept.write_text(json.dumps(self.state, indent=1) + "\n", "utf-8")

    def compiled(self, name: str, reduction: Sequence[str] | None) -> Bundle:
        folder = self.folder / name
        if folder.is_dir():
            return Bundle(folder)
        return compile(self.model, CompileOptions(backbone=self.backbone, reduction=reduction), output=folder)

    def last_layer_at(self, name: str, r: Fraction) -> Bundle:
        layers = [layer.reduction for layer in self.baseline.manifest.layers]
        return self.compiled(name, [*layers[:-1], str(r)])

    def ratio(self, slow: Bundle) -> float:
        """Latency of a bundle over the baseline's, the geometric mean over launches."""
        inputs = slow.manifest.signature.common(self.baseline.manifest.signature).random(1, self.tokens)
        contenders = [Contender.of_bundle("baseline", self.baseline.folder), Contender.of_bundle("slow", slow.folder)]
        ratios = []
        for launch in range(LAUNCHES):
            timings = in_turns(contenders[:: -1 if launch % 2 else 1], [inputs], rounds=10, threads=self.threads)
            pairs = zip(timings["slow"].rounds(), timings["baseline"].rounds(), strict=True)
            ratios.append(median(a / b for a, b in pairs))
        return geometric_mean(ratios)

    def work(self, r: Fraction) -> float:
        """Multiply-adds of the model with its last layer at r, over the baseline's."""
        manifest = self.baseline.manifest
        last = replace(manifest.layers[-1], reduction=str(r))
        changed = replace(manifest, layers=(*manifest.layers[:-1], last))
        return multiply_adds(changed, self.tokens) / multiply_adds(manifest, self.tokens)

    def slowed(self) -> Bundle:
        """A bundle that takes about 10 % longer, found by interpolating between the baseline and a dense last layer."""
        if "r" not in self.state:
            dense = Fraction(1)
            slowest = self.ratio(self.last_layer_at("dense-last-layer", dense))
            if slowest < 1 + INJECTED:
                raise CodaError(f"a dense last layer slows this model by {slowest - 1:.1%} only: take a smaller model")
            wanted = 1 + (self.work(dense) - 1) * INJECTED / (slowest - 1)
            trained = Fraction(self.baseline.manifest.layers[-1].reduction)
            choices = {Fraction(n, d) for d in _DENOMINATORS for n in range(d, int(trained * d) + 1)}
            self.state["r"] = str(min(choices, key=lambda r: abs(self.work(r) - wanted)))
        bundle = self.last_layer_at("slow", Fraction(self.state["r"]))
        if "injected" not in self.state:
            self.state["injected"] = self.ratio(bundle)
            self.keep()
        return bundle

    def run(self, kind: str, candidate: Bundle, runs: int, by: float) -> list[dict[str, Any]]:
        """Ask the gate's clock until there are so many answers."""
        done: list[dict[str, Any]] = self.state.setdefault(kind, [])
        signature = candidate.manifest.signature.common(self.baseline.manifest.signature)
        shape = (1, self.tokens)
        for seed in range(len(done), runs):
            timing = compare_latency(
                self.baseline.folder, candidate.folder, signature, shape, by=by, threads=self.threads, seed=seed
            )
            ratio, noise = timing.estimate.ratio, timing.estimate.noise
            done.append(
                {
                    "verdict": timing.estimate.verdict.value,
                    "ratio": None if ratio is None else asdict(ratio),
                    "noise": None if noise is None else asdict(noise),
                    "launches": len(timing.launches),
                    "seconds": timing.took,
                    "load": timing.load,
                }
            )
            self.keep()
            click.echo(f"{kind} {seed + 1}/{runs}: {done[-1]['verdict']}, {timing.took:.0f} s", err=True)
        return done


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """One line of the table."""
    counts = [sum(run["verdict"] == verdict.value for run in runs) for verdict in Verdict]
    launches, seconds = median(run["launches"] for run in runs), median(run["seconds"] for run in runs)
    return f"| {name} | {len(runs)} | {' | '.join(map(str, counts))} | {launches:g} | {seconds:.0f} s |"


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), default=Path("examples/reviews.pt"), show_default=True)
@click.option("--backbone", help="Folder or hub name of the pretrained encoder.")
@click.option("--tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=0, type=click.IntRange(0), help="[default: all cores]")
@click.option("--by", default=BY, show_default=True)
@click.option("--runs", default=50, show_default=True, type=click.IntRange(1), help="Of the bundle against itself.")
@click.option("--slow-runs", default=10, show_default=True, type=click.IntRange(1), help="Of the slowed bundle.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/gate-rates"), show_default=True)
def main(
    model: Path, backbone: str | None, tokens: int, threads: int, by: float, runs: int, slow_runs: int, out: Path
) -> None:
    try:
        study = Study(model, backbone, tokens, threads, out)
        slow = study.slowed()
        injected = f"{study.state['injected'] - 1:+.1%}".replace("%", " %")
        same = study.run("same", study.baseline, runs, by)
        slowed = study.run("slowed", slow, slow_runs, by)
    except CodaError as error:
        raise click.ClickException(str(error)) from None
    machine = this_machine()
    click.echo(f"{model.name}, 1 x {tokens} tokens, threshold {by:.0%}; {machine.cpu}, {machine.cores} cores")
    click.echo(
        f"injected: {injected}, measured over {LAUNCHES} launches, by the last layer at r = {study.state['r']}\n"
    )
    click.echo(f"| | runs | {' | '.join(verdict.value for verdict in Verdict)} | launches | time |")
    click.echo("|---|---|---|---|---|---|---|")
    click.echo(row("a bundle against itself", same))
    click.echo(row(f"slowed by {injected}", slowed))


if __name__ == "__main__":
    main()
