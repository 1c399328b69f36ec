"""Commands about a bundle as it is: inspect, verify, evaluate. Parse and call, nothing else."""

from pathlib import Path

import click

from coda_compile.cli.variant import variant_options


@click.command(short_help="Is a bundle intact, and right on this machine?")
@click.argument("bundle", type=click.Path(path_type=Path))
def verify(bundle: Path) -> None:
    """Check every file of BUNDLE against its SHA-256, and its outputs on this machine against the expected ones: of
    every variant that this machine can run. It fails where it can run none.
    """
    from coda_compile.cli import summaries
    from coda_compile.verify.reference_vectors import check_bundle, verify_outputs
    from coda_targets import Bundle, TargetError

    opened, proved = Bundle(bundle), False
    check_bundle(opened)
    for variant in opened.manifest.variants:
        if lacking := opened.lacks(variant):
            summaries.not_verified(variant, lacking)
            continue
        chosen, proved = Bundle(bundle, target=variant.target, precision=variant.precision), True
        for task in chosen.tasks or (None,):
            summaries.verified(verify_outputs(chosen, task), variant.name if task is None else task)
    if not proved:
        raise TargetError(f"no variant of {bundle} runs here, so that its outputs were not verified")


@click.command(short_help="What is inside a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
def inspect(bundle: Path) -> None:
    """Summarise BUNDLE: operators, tokens routed in each layer, multiply-adds against dense, sizes."""
    from coda_compile.cli import summaries
    from coda_targets import Bundle

    summaries.inspected(Bundle(bundle))


@click.command(short_help="Accuracy on your texts, and how well unknown ones are told.")
@click.argument("bundle", type=click.Path(path_type=Path))
@variant_options
@click.option("--data", type=click.Path(path_type=Path), required=True, help="CSV file, text,label.")
@click.option("--outside", type=click.Path(path_type=Path), help="CSV file with texts the model is not meant for.")
@click.option("--model", type=click.Path(path_type=Path), help="The model behind BUNDLE, to compare with.")
@click.option("--ood-data", type=click.Path(path_type=Path), help="What the bundle's --ood was fitted on.")
@click.option("--backbone", metavar="PATH", help="Folder or hub name of the model's backbone.")
def evaluate(
    bundle: Path,
    target: str | None,
    precision: str | None,
    data: Path,
    outside: Path | None,
    model: Path | None,
    ood_data: Path | None,
    backbone: str | None,
) -> None:
    """Label the texts of a CSV file with BUNDLE: its accuracy and, with texts that the model is not meant for, AUROC,
    AUPR and FPR at 95 % TPR of its out-of-distribution score. With the model that it was made from, both side by side.

    \b
    coda-compile evaluate reviews-cpu --data test.csv
    coda-compile evaluate intents-cpu --data test.csv --outside others.csv --model intents.pt --ood-data train.csv
    """
    from coda_compile.cli import summaries
    from coda_compile.inspect.evaluate import evaluate as evaluate_bundle
    from coda_targets import Bundle

    if outside is not None and model is not None and ood_data is None:
        raise click.UsageError("scoring with the model takes what the bundle was fitted on: --ood-data FILE")
    opened = Bundle(bundle, target=target, precision=precision)
    source = None
    if model is not None:
        from coda_compile.sources import read_source

        source = read_source(model, backbone=backbone)
    summaries.evaluated(evaluate_bundle(opened, data, outside=outside, original=source, known=ood_data))
