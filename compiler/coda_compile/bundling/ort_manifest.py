"""manifest.json: the bundle as a model package, which onnxruntime 1.29 and later opens by itself.

    context = onnxruntime.ModelPackageContext(folder)
    options = onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions())
    session = context.select_component("model", options).create_session()

It takes the first execution provider that the options name, and of its variants the first.
"""

import json
from collections.abc import Sequence
from typing import Any

from coda_targets import Runtime
from coda_targets.manifest import GRAPH_LEVELS, MANIFEST, VariantInfo

_SCHEMA = "1.0"
# "portable" refuses files that are links out of the folder, as all are in the cache of a hub.
_LAYOUT = "installed"
_GRAPH_LEVELS = dict(zip(GRAPH_LEVELS, ("disable_all", "enable_basic", "enable_extended", "enable_all"), strict=True))


def ort_manifest(variants: Sequence[tuple[VariantInfo, Runtime]]) -> str:
    """JSON text that lists each variant under each part of the model."""
    parts = variants[0][0].models
    components = {
        part: {"variants": {info.name: _variant(info, runtime, info.models[part]) for info, runtime in variants}}
        for part in parts
    }
    plain = {
        "schema_version": _SCHEMA,
        "layout": _LAYOUT,
        "components": components,
        "additional_metadata": {"coda": MANIFEST},
    }
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"  # unsorted: the order of variants has a meaning


def _variant(info: VariantInfo, runtime: Runtime, model: str) -> dict[str, Any]:
    executor: dict[str, Any] = {"model_file": model}
    if options := _session_options(info, runtime):
        executor["session_options"] = options
    if runtime.provider_options:
        executor["provider_options"] = runtime.provider_options
    plain: dict[str, Any] = {
        "variant_directory": ".",
        "executor_info": {"ort": executor},
        "additional_metadata": {"target": info.target, "precision": info.precision},
    }
    if runtime.preferred:
        plain |= {"ep": runtime.preferred, "device": runtime.device}
    return plain


def _session_options(info: VariantInfo, runtime: Runtime) -> dict[str, str]:
    """What differs from onnxruntime's own defaults."""
    options = dict(runtime.session_config)
    if info.session.graph_level != GRAPH_LEVELS[-1]:
        options["session.graph_optimization_level"] = _GRAPH_LEVELS[info.session.graph_level]
    if info.session.threads:
        options["session.intra_op_num_threads"] = str(info.session.threads)
    return options
