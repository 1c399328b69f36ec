"""Commands about a bundle as it is: inspect, verify, evaluate. Parse and call, nothing else."""

from pathlib import Path

import click

from coda_compile.cli.variant import device_option, variant_options


@click.command(short_help="Check a bundle's files and outputs on this machine.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", "-t", metavar="NAME", help="Verify the variants of this target alone.  [default: all]")
@click.option("--precision", "-p", metavar="NAME", help="Verify the variants of this precision alone.  [default: all]")
@device_option
def verify(bundle: Path, target: str | None, precision: str | None, device: int) -> None:
    """Check every file of BUNDLE against its SHA-256. Then run every variant that this machine can run, and compare
    with the reference outputs. It is an error if this machine can run none.

    A bundle that was compiled on a machine without the device that it is for is verified there by this command.

    \b
    coda-compile verify reviews-cpu
    coda-compile verify reviews-cuda --target cuda
    """
    from coda_compile.cli import summaries
    from coda_compile.verify.reference_vectors import check_bundle, verify_outputs
    from coda_targets import Bundle, TargetError
    from coda_targets.manifest import variants_of

    opened = Bundle(bundle, device=device)
    check_bundle(opened)
    asked = variants_of(opened.folder, opened.manifest, target, precision)
    lacking = [opened.lacks(variant) for variant in asked]
    if all(lacking):
        every = "; ".join(f"{variant.name}: {lacks}" for variant, lacks in zip(asked, lacking, strict=True))
        raise TargetError(f"{bundle} is intact, and its outputs were not verified, as no variant runs here: {every}")
    for variant, lacks in zip(asked, lacking, strict=True):
        if lacks:
            summaries.not_verified(variant, lacks)
            continue
        chosen = Bundle(bundle, target=variant.target, precision=variant.precision, device=device)
        for task in chosen.tasks or (None,):
            summaries.verified(verify_outputs(chosen, task), variant.name if task is None else task)
    summaries.kernels_to_build(opened)


@click.command(short_help="Show what a bundle holds.")
@click.argument("bundle", type=click.Path(path_type=Path))
def inspect(bundle: Path) -> None:
    """Show BUNDLE: inputs, outputs, variants, operators, tokens routed in each layer, multiply-adds against dense, file
    sizes. Of a bundle for GPUs, also estimate from how many tokens a batch it is faster than the dense model, on this
    machine's card or on well-known ones.
    """
    from coda_compile.cli import summaries
    from coda_targets import Bundle

    summaries.inspected(Bundle(bundle))


@click.command(short_help="Measure accuracy and out-of-distribution detection.")
@click.argument("bundle", type=click.Path(path_type=Path))
@variant_options
@device_option
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Labelled data: CSV with text,label (and text_pair)."
)
@click.option(
    "--outside", type=click.Path(path_type=Path), help="Out-of-distribution data: CSV with text (and text_pair)."
)
@click.option("--model", type=click.Path(path_type=Path), help="The model that BUNDLE was made from, to compare with.")
@click.option("--ood-data", type=click.Path(path_type=Path), help="The --ood-data that BUNDLE was compiled with.")
@click.option("--backbone", metavar="PATH", help="Folder or hub name of the model's backbone.")
def evaluate(
    bundle: Path,
    target: str | None,
    precision: str | None,
    device: int,
    data: Path,
    outside: Path | None,
    model: Path | None,
    ood_data: Path | None,
    backbone: str | None,
) -> None:
    """Measure the accuracy of BUNDLE on a CSV file. With --outside, also measure AUROC, AUPR and FPR at 95 % TPR of its
    out-of-distribution score. With --model, show the original model's figures beside them.

    \b
    coda-compile evaluate reviews-cpu --data test.csv
    coda-compile evaluate intents-cpu --data test.csv --outside others.csv --model intents.pt --ood-data train.csv
    """
    from coda_compile.cli import summaries
    from coda_compile.inspect.evaluate import evaluate as evaluate_bundle
    from coda_targets import Bundle

    if outside is not None and model is not None and ood_data is None:
        raise click.UsageError("scoring with --model needs the data that the bundle was fitted on: --ood-data FILE")
    opened = Bundle(bundle, target=target, precision=precision, device=device)
    source = None
    if model is not None:
        from coda_compile.sources import read_source

        source = read_source(model, backbone=backbone)
    summaries.evaluated(evaluate_bundle(opened, data, outside=outside, original=source, known=ood_data))
