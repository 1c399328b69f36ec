"""Add a task to a bundle: one more small, verified file. The shared model stays as it is."""

import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from coda_compile.backends import get_backend
from coda_compile.bundling import tasks
from coda_compile.bundling.replace_folder import Stage, locked
from coda_compile.bundling.writer import check_output, replacing
from coda_compile.errors import CompileError, as_sentences
from coda_compile.precision import get_precision
from coda_compile.sources import read_model
from coda_compile.sources.torch_model import TorchModel
from coda_compile.verify import reference_vectors
from coda_models.config import CodaConfig
from coda_models.model import CodaModel
from coda_targets import Bundle
from coda_targets.bundle import MODEL
from coda_targets.bundle_files import list_files
from coda_targets.manifest import MANIFEST


@as_sentences()
def add_task(
    bundle: Bundle,
    name: str,
    model: CodaModel | Path | str,
    *,
    backbone: Path | str | None = None,
    stage: Stage = nullcontext,
) -> Bundle:
    """Put another task beside those that share a bundle's backbone.

    Args:
        bundle: compiled from several models.
        name: of the task.
        model: in memory or a path, trained on the same backbone with the same configuration.
        backbone: of a delta; by default what it names.
        stage: called with each stage's name, gives a context that lasts as long as the stage; one of them is waiting
            for another process that adds a task.

    Returns:
        The bundle, opened anew.

    Raises:
        CodaError: one sentence that says what was wrong; the bundle is as it was.
    """
    tasks.check_name(name)
    folder = bundle.folder.resolve()
    with locked(folder, stage):
        _add(Bundle(folder), name, model, backbone, stage)  # another task may have come while this one waited
    return Bundle(bundle.folder)


def _add(bundle: Bundle, name: str, model: CodaModel | Path | str, backbone: Path | str | None, stage: Stage) -> None:
    manifest = bundle.manifest
    if not manifest.tasks:
        raise CompileError(f"{bundle.folder} was compiled for one task: compile it anew with all the checkpoints")
    if name in bundle.tasks:
        raise CompileError(f"{bundle.folder} has a task {name!r} already: rename the checkpoint")
    with stage("load"):
        bundle.check()
        check_output(bundle.folder)
        source = read_model(model, backbone)
        source.model.set_reduction([layer.reduction for layer in manifest.layers])
        _check(source, bundle, name)
        recipe = get_precision(bundle.variant.precision)
        source.quantise(recipe, None, adapters=False)
    backend = replace(get_backend(bundle.variant.target), runtime=bundle.runtime)
    with replacing(bundle.folder, held=True) as folder:
        shutil.copytree(bundle.folder, folder, dirs_exist_ok=True, copy_function=_link)
        with stage("verify"):
            swapped = tasks.write(folder, name, source.model)
            proved = source.verify_task(folder / MODEL, backend, recipe, bundle.folder, swapped)
            reference_vectors.write(folder, proved.vectors, task=name)
            (folder / MANIFEST).unlink()  # a link to the old one
            added = (*manifest.tasks, tasks.info(name, source.model))
            (folder / MANIFEST).write_text(replace(manifest, tasks=added, files=list_files(folder)).dump(), "utf-8")
        check_output(bundle.folder)  # again: minutes may have passed


def _link(source: str, target: str) -> None:
    """A hard link where the file system has them: gigabytes need no copying to stay as they are."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def _check(source: TorchModel, bundle: Bundle, name: str) -> None:
    """Refuse a model that was trained on another backbone, whose parameters the graph has no place for, or whose
    tokenizer cuts texts elsewhere."""
    model, signature = source.model, bundle.manifest.signature
    own = model.coda_config.to_dict()
    if own["backbone_sha256"] != bundle.manifest.coda_config.get("backbone_sha256"):
        raise CompileError(f"{name} was trained on another backbone than the tasks in {bundle.folder}")
    shared = CodaConfig.from_dict(bundle.manifest.coda_config).to_dict()
    if _comparable(own) != _comparable(shared):
        raise CompileError(f"{name} has another configuration than the tasks in {bundle.folder}")
    own_length, length = model.signature.max_length, signature.max_length
    if source.tokenizer is not None and own_length != length:
        raise CompileError(
            f"{name} cuts texts at {own_length} tokens and the tasks in {bundle.folder} at {length}: compile it into a "
            "bundle of its own"
        )
    model.signature = signature
    places = {one.name: one.shape for one in bundle.session.get_overridable_initializers()}
    shapes = {key: list(tensor.shape) for key, tensor in tasks.parameters(model).items()}
    fits = shapes.keys() == places.keys() and all(_fits(shapes[key], places[key]) for key in shapes)
    if not fits:
        raise CompileError(f"{name} has another head than the tasks in {bundle.folder}")


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("backbone", "reduction")}


def _fits(shape: list[int], place: list[Any]) -> bool:
    free = [b is None or isinstance(b, str) for b in place]
    return len(shape) == len(place) and all(a == b or any_ for a, b, any_ in zip(shape, place, free, strict=True))
