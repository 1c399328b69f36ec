"""What commands say of a bundle: compiled, inspected, verified, evaluated, routed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from coda_compile.bundling.build_report import read_report
from coda_compile.cli import gpu_estimate
from coda_compile.inspect.cost import dense_multiply_adds, fewer, layer_multiply_adds, multiply_adds
from coda_compile.inspect.predict import RoutedWords
from coda_compile.terminal import out, whole
from coda_compile.verify.parity import CaseParity
from coda_ops import DOMAIN, native
from coda_targets import Bundle, TargetError, get_runtime
from coda_targets.manifest import MULTI_LABEL, REGRESSION, SINGLE_LABEL, WEIGHTS, Manifest, VariantInfo
from coda_targets.runtimes.session import load_kernels

if TYPE_CHECKING:
    from coda_compile.inspect.evaluate import Evaluation

# What layers may have for tokens that are not routed.
_THIN = {"stand_in": "stand-ins", "key_value_rank": "keys and values"}


def compiled(bundle: Bundle, folder: Path, seconds: float) -> None:
    """The closing summary of a compilation."""
    manifest = bundle.manifest
    n, unit = manifest.signature.max_length, manifest.signature.unit
    size = sum(file.bytes for file in manifest.files)
    ratio = fewer(manifest)
    made = ", ".join(dict.fromkeys(variant.target for variant in manifest.variants))
    out.print(f"{folder}: {size / 1e6:.1f} MB for {made}, verified, in {seconds:.0f} s", soft_wrap=True)
    if ratio > 1:
        out.print(f"  {ratio:.1f}x fewer multiply-adds than the dense model at {n} {unit}")
    if manifest.fidelity is not None:
        out.print(f"  before compilation: {manifest.fidelity}", soft_wrap=True)
    if (pruning := read_report(folder).pruning) is not None:
        out.print(f"  {pruning}", soft_wrap=True)
    if steps := _embedding(manifest):
        out.print(f"  embedding: {steps}", soft_wrap=True)
    for variant in manifest.variants:
        if not variant.ran:
            out.print(
                f"  {variant.name}: {_proved(variant)}; next, on one: coda-compile verify {folder}", soft_wrap=True
            )
    kernels_to_build(bundle)
    runs = not bundle.lacks(bundle.variant) and (folder / "tokenizer.json").is_file()
    try_it = f'coda-compile run {folder} "some text"' if runs else f"coda-compile inspect {folder}"
    out.print(f"  next: {try_it}", soft_wrap=True)


def routing(words: RoutedWords) -> None:
    """The text once a layer, the words that took the heavy path marked."""
    for layer, routed in words.layers:
        line = Text(f"  layer {layer:>2} {sum(routed):>4} of {len(routed)} words  ", style="dim")
        for word, heavy in zip(words.words, routed, strict=True):
            marked = f"[{word}]" if not out.is_terminal else word
            line.append(marked if heavy else word, style="reverse not dim" if heavy else "dim")
            line.append(" ")
        out.print(line, soft_wrap=True)


def verified(result: CaseParity, name: str) -> None:
    """How a variant, or one of several tasks, compared with its own test data."""
    differences = ", ".join(f"{name} within {value:.1e}" for name, value in result.outputs.items())
    out.print(f"{name}: intact and right: scores within {result.scores:.1e}, {differences}")
    for tie in result.ties:
        out.print(
            f"  tie in layer {tie.layer}, example {tie.example}, position {tie.position}: margin {tie.margin:.1e}, "
            f"explained up to {tie.allowed:.1e}; this example was not compared further"
        )


def evaluated(found: Sequence["Evaluation"]) -> None:
    """Accuracy and separation of each model, side by side."""
    table = Table("", *(one.name for one in found))

    def row(name: str, values: Iterable[float | None], form: str) -> None:
        shown = ["" if value is None else format(value, form) for value in values]
        if any(shown):
            table.add_row(name, *shown)

    row("accuracy", (one.accuracy for one in found), ".2%")
    if len(found) > 1:
        row("same predictions as the bundle", (one.same for one in found), ".2%")
    apart = [one.separation for one in found]
    row("AUROC", (None if one is None else one.auroc for one in apart), ".4f")
    row("AUPR, out-of-distribution positive", (None if one is None else one.aupr for one in apart), ".4f")
    row("FPR at 95 % TPR", (None if one is None else one.fpr95 for one in apart), ".2%")
    row("in-distribution flagged", (None if one.flagged is None else one.flagged[0] for one in found), ".2%")
    if any(apart):
        row("out-of-distribution flagged", (None if one.flagged is None else one.flagged[1] for one in found), ".2%")
    whole(table)


def not_verified(variant: VariantInfo, lacking: str) -> None:
    """A variant that this machine cannot run."""
    out.print(f"{variant.name}: not run here: {lacking}", soft_wrap=True)


def inspected(bundle: Bundle) -> None:
    """A readable summary of a bundle."""
    m = bundle.manifest
    n, unit = m.signature.max_length, m.signature.unit
    out.print(Text.assemble((str(bundle.folder), "bold"), f"  {m.architecture}, {m.task}"), soft_wrap=True)
    taken = [(one.name, one.dtype, one.axes) for one in m.signature.inputs]
    given = [(one.name, one.dtype, one.shape) for one in m.outputs]
    for kind, tensors in (("inputs", taken), ("outputs", given)):
        listed = ", ".join(f"{name} {dtype}[{', '.join(map(str, axes))}]" for name, dtype, axes in tensors)
        out.print(f"  {kind:<9}{listed}", soft_wrap=True)
    out.print(f"  takes    up to {n} {unit}")
    if m.labels:
        shown = ", ".join(m.labels[:8]) + (f" … {len(m.labels)} in all" if len(m.labels) > 8 else "")
        out.print(f"  labels   {shown}", soft_wrap=True)
    if m.logits is not None:
        out.print(f"  scores   {_scored(m)}", soft_wrap=True)
    if steps := _embedding(m):
        out.print(f"  embeds   {steps}", soft_wrap=True)
    if m.fidelity is not None:
        for i, figure in enumerate(m.fidelity.figures):
            out.print(f"  {'' if i else 'keeps':<9}{figure}", soft_wrap=True)
        out.print(f"  {'':<9}in float32, {m.fidelity.on}", soft_wrap=True)
    if m.tasks:
        told = [f" ({task.logits.activation})" if task.logits and task.logits != m.logits else "" for task in m.tasks]
        listed = ", ".join(task.name + note for task, note in zip(m.tasks, told, strict=True))
        out.print(f"  tasks    {listed}", soft_wrap=True)
    if m.ood is not None:
        kept = f"{m.ood.kept:.0%} of in-distribution data lie below"
        out.print(f"  ood      {m.ood.method}, out above {m.ood.threshold:.4g}; {kept}")

    _variants(bundle)
    kernels_to_build(bundle)
    if m.layers:
        _layers(m)
        gpu_estimate.show(m)
    files = Table(title="files", title_justify="left", box=None, show_header=False, padding=(0, 2))
    files.add_column()
    files.add_column(justify="right")
    for file in m.files:
        files.add_row(file.path, f"{file.bytes / 1e3:,.1f} kB")
    out.print(files)
    made = ", ".join(f"{name} {version}" for name, version in sorted(m.versions.items()))
    out.print(f"made with\n  {made}", soft_wrap=True)


def _variants(bundle: Bundle) -> None:
    """What each variant needs, how large it is, and what of it lies where others share it."""
    m = bundle.manifest
    sizes = {file.path: file.bytes for file in m.files}
    shown = Table(title="variants", title_justify="left", box=None, pad_edge=False, padding=(0, 2))
    for name in ("variant", "file", "MB", f"in {WEIGHTS}", "needs onnxruntime", "opset", "here"):
        shown.add_column(name, justify="right" if name == "MB" or WEIGHTS in name else "left")
    for one in m.variants:
        own = sum(sizes[name] for name in one.models.values())
        runs = "" if bundle.lacks(one) else "runs"
        shown.add_row(
            one.name,
            ", ".join(one.models.values()),
            f"{(own + one.external_bytes) / 1e6:,.1f}",
            f"{one.external_bytes / 1e6:,.1f}" if one.external_bytes else "",
            one.minimum_onnxruntime,
            str(one.opset[""]),
            "taken" if runs and one == bundle.variant else runs or "cannot run",
        )
    whole(shown)
    for one in m.variants:
        if one.proofs:
            out.print(f"proofs of {one.name}\n  {_proved(one)}", soft_wrap=True)
    for one in m.variants:
        counts = sorted(one.operators.items(), key=lambda item: (-item[1], item[0]))
        out.print(f"operators of {one.name}\n  {', '.join(f'{name} {n}' for name, n in counts)}", soft_wrap=True)


def _proved(variant: VariantInfo) -> str:
    """What was shown of a variant when it was compiled, and on what it never ran."""
    shown = ", ".join(f"{proof.what} on {proof.where}" for proof in variant.proofs)
    if variant.ran:
        return shown
    try:
        device = f"a {get_runtime(variant.target).device.upper()}"
    except TargetError:  # of a newer release
        device = variant.session.providers[0]
    return f"{shown}, never run on {device}"


def _scored(m: Manifest) -> str:
    """What logits mean, in words."""
    assert m.logits is not None
    made = "the logits themselves" if m.logits.activation == "none" else f"{m.logits.activation} of the logits"
    if len(m.labels) == 1:
        return f"{made}, one number per text"
    ways = {
        SINGLE_LABEL: "the best label is the prediction",
        MULTI_LABEL: "each label is decided on its own",
        REGRESSION: "each label is a number",
    }
    return f"{made}, {ways[m.logits.problem_type]}"


def _embedding(m: Manifest) -> str:
    """How tokens become one embedding, of models that embed text and say how."""
    if m.task != "feature-extraction" or not m.coda_config:
        return ""
    pooling, modules = m.coda_config.get("pooling"), m.coda_config.get("modules")
    poolings = pooling if isinstance(pooling, list) else [pooling]
    kinds = [one.get("kind") for one in modules if isinstance(one, dict)] if isinstance(modules, list) else []
    return ", ".join([f"{' + '.join(map(str, poolings))} of the tokens", *map(str, kinds)])


def _layers(m: Manifest) -> None:
    """What each layer routes and multiplies."""
    n = m.signature.max_length
    layers = Table(
        title=f"layers, at {n} {m.signature.unit}", title_justify="left", box=None, pad_edge=False, padding=(0, 2)
    )
    for name in ("layer", "r", f"{m.signature.unit} routed", "attention", "adapter", "multiply-adds", "of dense"):
        layers.add_column(name, justify="right" if name != "attention" else "left")
    dense = dense_multiply_adds(m, n) / len(m.layers)
    for i, layer in enumerate(m.layers):
        cost = layer_multiply_adds(layer, n, m.width, m.feed_forward)
        routed = layer.reduction != "1"
        layers.add_row(
            str(i),
            layer.reduction,
            f"{layer.slots}" if routed else "all",
            layer.attention if routed else "dense",
            str(layer.bottleneck or "none"),
            f"{cost / 1e6:,.0f} M",
            f"{cost / dense:.0%}",
        )
    out.print(layers)
    ranks = {name: max(getattr(layer, name) for layer in m.layers) for name in _THIN}
    if thin := ", ".join(f"{_THIN[name]} of rank {rank}" for name, rank in ranks.items() if rank):
        out.print(f"  {m.signature.unit} not routed: {thin}")
    total, all_dense = multiply_adds(m, n), dense_multiply_adds(m, n)
    out.print(
        f"  {total / 1e9:.2f} G multiply-adds against {all_dense / 1e9:.2f} G dense: bound {all_dense / total:.2f}x"
    )


def kernels() -> None:
    """Where the native kernels are; what building them lacks."""
    if native.switched_off():
        out.print(f"{native.SWITCH} is portable: bundles run on their function bodies", soft_wrap=True)
        return
    for library in native.LIBRARIES.values():
        found = native.library(library.name)
        if found is not None:
            load_kernels(found, name=library.name)
            out.print(f"{', '.join(library.operators)}: {found}, loaded by this onnxruntime", soft_wrap=True)
            continue
        out.print(
            f"no native kernels for {library.processors} here: bundles run on their function bodies", soft_wrap=True
        )
        lacks = native.missing(name=library.name)
        out.print(f"  {lacks or f'next: coda-compile kernels build --target {library.name}'}", soft_wrap=True)


def kernels_to_build(bundle: Bundle) -> None:
    """Say of a bundle that runs here on function bodies that native kernels would run it faster, and how to get them.

    Nothing where kernels are built or switched off, or serve none of its operators.
    """
    if native.switched_off():
        return
    served = {one.session.kernels for one in bundle.manifest.variants if _serve(one) and not bundle.lacks(one)}
    for name in sorted(served):
        if native.library(name) is None:
            lacks = native.missing(name=name)
            out.print(
                f"  native kernels for {native.LIBRARIES[name].processors} are not built, and it runs slower without: "
                f"{f'{lacks}; then ' if lacks else ''}coda-compile kernels build --target {name}",
                soft_wrap=True,
            )


def _serve(variant: VariantInfo) -> bool:
    """Whether a library of native kernels has one of a variant's operators."""
    library = native.LIBRARIES.get(variant.session.kernels)
    return library is not None and any(f"{DOMAIN}::{name}" in variant.operators for name in library.operators)
