"""What a user would deploy instead: the dense model, from the same checkpoint at r = 1, in every common runtime.

A machine's CPU and its GPU have baselines of their own.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import optimizer

from coda_compile.backends import get_backend
from coda_compile.bench.machine import this_machine
from coda_compile.bench.result import Skipped
from coda_compile.bench.run import REFERENCE
from coda_compile.bench.turns import Contender, calibration_inputs
from coda_compile.bundling.writer import transformers_config, write_config
from coda_compile.export import export, save_onnx
from coda_compile.passes.attach_functions import AttachFunctions
from coda_models import CodaModel, save
from coda_models.architectures import FAMILIES
from coda_ops.errors import first_line
from coda_targets import get_runtime
from coda_targets.runtimes import DEFAULT_TARGET, GPU

_CPU = get_runtime(DEFAULT_TARGET).device


class DenseAdapter:
    """The dense model of a checkpoint, and the files that baselines are made from, each made once.

    Args:
        model: at any r; it is copied and run at r = 1.
        folder: an empty folder for the files.
    """

    def __init__(self, model: CodaModel, folder: Path) -> None:
        self.model = deepcopy(model)
        if any(layer.router is not None for layer in self.model.coda_layers()):
            self.model.set_reduction(1)
        self.folder = folder

    @cached_property
    def checkpoint(self) -> Path:
        """A complete model.pt."""
        path = self.folder / "dense.pt"
        save(self.model, path)
        return path

    @cached_property
    def onnx(self) -> Path:
        """The model as the torch exporter leaves it by default: standard operators, constants folded."""
        folder = self.folder / "onnx"
        folder.mkdir()
        exported = AttachFunctions()(export(self.model, opset=get_backend(DEFAULT_TARGET).opset)).model
        exported = ir.passes.common.InlinePass()(exported).model
        optimizer.optimize(exported)
        save_onnx(exported, folder / "model.onnx")
        write_config(folder, transformers_config(self.model))
        return folder / "model.onnx"

    @cached_property
    def half_onnx(self) -> Path:
        """That file through onnxruntime's own transformer optimizer, in float16: what optimum's O4 makes."""
        from onnxruntime.transformers.optimizer import optimize_model

        config = self.model.hf_config
        sizes = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
        optimised = optimize_model(str(self.onnx), model_type="bert", opt_level=0, use_gpu=True, **sizes)
        optimised.convert_float_to_float16(keep_io_types=True)
        path = self.folder / "half" / "model.onnx"
        path.parent.mkdir()
        optimised.save_model_to_file(str(path))
        return path


@dataclass(frozen=True)
class Baseline:
    """One way to deploy the dense model.

    Attributes:
        name: as in tables.
        precision: ``fp32``, ``fp16`` or ``int8``.
        install: what brings it.
        build: makes its files, and says how a worker opens them and which files would be deployed.
        device: kind of hardware, as of ``Runtime``.
    """

    name: str
    precision: str
    install: str
    build: Callable[[DenseAdapter], tuple[Contender, list[Path]]]
    device: str = _CPU


def build_baseline(baseline: Baseline, dense: DenseAdapter) -> tuple[Contender, int] | Skipped:
    """A contender with the bytes it deploys, or why there is none."""
    try:
        with _quiet():
            contender, files = baseline.build(dense)
    except ModuleNotFoundError as error:
        return Skipped(baseline.name, f"{error.name} is not installed", baseline.install)
    except Exception as error:  # other projects' converters raise whatever they like; the others go on
        return Skipped(baseline.name, f"{type(error).__name__}: {first_line(error)}", "")
    return contender, sum(path.stat().st_size for path in files)


def _torch_eager(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    return Contender("torch eager", "torch_model", _torch_arguments(dense, compiled=False)), [dense.checkpoint]


def _torch_compile(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    return Contender("torch.compile", "torch_model", _torch_arguments(dense, compiled=True)), [dense.checkpoint]


def _torch_arguments(dense: DenseAdapter, *, compiled: bool) -> dict[str, Any]:
    architecture = FAMILIES[dense.model.hf_config.model_type]
    return {"checkpoint": str(dense.checkpoint), "compiled": compiled, "architecture": architecture}


def _onnxruntime(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    return Contender(REFERENCE, "onnx", {"path": str(dense.onnx)}), _with_weights(dense.onnx)


def _optimum_o3(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer

    folder = dense.folder / "optimum-o3"
    tool = ORTOptimizer.from_pretrained(dense.onnx.parent, file_names=[dense.onnx.name])
    tool.optimize(save_dir=folder, optimization_config=AutoOptimizationConfig.O3(), file_suffix="")
    path = folder / "model.onnx"
    return Contender("optimum O3", "onnx", {"path": str(path)}), _with_weights(path)


def _optimum_int8(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    folder = dense.folder / "optimum-int8"
    tool = ORTQuantizer.from_pretrained(dense.onnx.parent, file_name=dense.onnx.name)
    wanted = getattr(AutoQuantizationConfig, int8_instructions(this_machine().instruction_sets))
    tool.quantize(save_dir=folder, quantization_config=wanted(is_static=False, per_channel=False), file_suffix="")
    path = folder / "model.onnx"
    return Contender("optimum int8", "onnx", {"path": str(path)}), _with_weights(path)


def int8_instructions(available: tuple[str, ...]) -> str:
    """The preset of optimum's AutoQuantizationConfig for a machine's instruction sets."""
    if "avx512_vnni" in available:
        return "avx512_vnni"
    if "avx512f" in available:
        return "avx512"
    return "avx2" if "avx2" in available else "arm64"


def _openvino(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    import openvino

    path = dense.folder / "openvino" / "model.xml"
    openvino.save_model(openvino.convert_model(dense.onnx), path, compress_to_fp16=False)
    return Contender("OpenVINO", "openvino", {"path": str(path)}), [path, path.with_suffix(".bin")]


def _openvino_int8(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    import nncf
    import openvino

    path = dense.folder / "openvino-int8" / "model.xml"
    converted = openvino.convert_model(dense.onnx)
    names = {port.get_any_name() for port in converted.inputs}
    texts = calibration_inputs(dense.model.signature)
    feeds = [{name: np.ascontiguousarray(text[name]) for name in names} for text in texts]
    kind = nncf.ModelType.TRANSFORMER
    quantised = nncf.quantize(converted, nncf.Dataset(feeds), model_type=kind, subset_size=len(texts))
    openvino.save_model(quantised, path, compress_to_fp16=False)
    return Contender("OpenVINO int8", "openvino", {"path": str(path)}), [path, path.with_suffix(".bin")]


def _onnxruntime_half(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    path = dense.half_onnx
    return Contender("onnxruntime fp16", "onnx_on_gpu", {"path": str(path)}), _with_weights(path)


def _onnxruntime_graph(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    path = dense.half_onnx
    arguments = {"path": str(path), "cuda_graph": True}
    return Contender("onnxruntime fp16 CUDA graph", "onnx_on_gpu", arguments), _with_weights(path)


def _torch_eager_half(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    arguments = _torch_arguments(dense, compiled=False)
    return Contender("torch eager fp16", "torch_on_gpu", arguments), [dense.checkpoint]


def _torch_compile_half(dense: DenseAdapter) -> tuple[Contender, list[Path]]:
    arguments = _torch_arguments(dense, compiled=True)
    return Contender("torch.compile fp16", "torch_on_gpu", arguments), [dense.checkpoint]


def _with_weights(path: Path) -> list[Path]:
    return sorted(file for file in path.parent.iterdir() if file.name.startswith(path.name))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters of other projects talk a lot; what matters is measured."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


_OPTIMUM, _OPENVINO = 'pip install "coda-compile[optimum]"', 'pip install "coda-compile[openvino]"'
BASELINES: tuple[Baseline, ...] = (
    Baseline("torch eager", "fp32", "", _torch_eager),
    Baseline("torch.compile", "fp32", "", _torch_compile),
    Baseline(REFERENCE, "fp32", "", _onnxruntime),
    Baseline("optimum O3", "fp32", _OPTIMUM, _optimum_o3),
    Baseline("optimum int8", "int8", _OPTIMUM, _optimum_int8),
    Baseline("OpenVINO", "fp32", _OPENVINO, _openvino),
    Baseline("OpenVINO int8", "int8", _OPENVINO, _openvino_int8),
    Baseline("torch eager fp16", "fp16", "", _torch_eager_half, GPU),
    Baseline("torch.compile fp16", "fp16", "", _torch_compile_half, GPU),
    Baseline("onnxruntime fp16", "fp16", "", _onnxruntime_half, GPU),
    Baseline("onnxruntime fp16 CUDA graph", "fp16", "", _onnxruntime_graph, GPU),
)
# On a GPU; the bench names them beside what it measured.
UNMEASURED: tuple[Skipped, ...] = (
    Skipped("TensorRT fp16, int8 and fp8", "its libraries are not on PyPI, whose packages fetch them from NVIDIA", ""),
    Skipped("text-embeddings-inference", "a server that is not on PyPI", ""),
)
