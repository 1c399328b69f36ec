"""ONNX files of other exporters are recognised, understood without their model, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from tests.compiler.exports import lora_classifier, write
from tests.conftest import WORDS, tiny_backbone
from tests.targets.test_links import hub_cache
from transformers import PreTrainedTokenizerFast

from coda_compile.errors import CompileError
from coda_compile.sources import find_onnx, read_source
from coda_compile.sources.onnx_graph import original, read
from coda_targets import Bundle

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A BERT's folder, whose weights lie in the file."""
    path = write(lora_classifier(), tmp_path_factory.mktemp("bert"), tokenizer=tokenizer)
    onnx.save(onnx.load(str(path)), str(path))
    path.with_name("model.onnx.data").unlink(missing_ok=True)
    return path.parent


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(exported, tmp_path / "folder")
    return tmp_path / "folder"


def test_files_and_folders_are_found(exported: Path, folder: Path, compiled: Bundle):
    assert find_onnx(exported) == find_onnx(exported / "model.onnx") == exported / "model.onnx"
    assert find_onnx(exported / "config.json") is None
    assert find_onnx(compiled.folder) is None
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):  # what a Trainer leaves
        (folder / name).touch()
    assert find_onnx(folder) == folder / "model.onnx"
    for name in ("model.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin"):
        (folder / name).touch()
        assert find_onnx(folder) is None
        (folder / name).unlink()
    assert find_onnx(folder / "absent.onnx") is None


def test_a_graph_tells_what_it_is(exported: Path):
    graph = read(exported / "model.onnx")
    assert (graph.task, graph.labels) == ("sequence-classification", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert graph.signature.names == ("input_ids", "attention_mask", "token_type_ids")
    assert (graph.signature.lead.size, graph.signature.lead.padding, graph.signature.max_length) == (len(WORDS), 0, 66)
    assert graph.tokenizer is not None
    assert [str(value.shape) for value in graph.model.graph.outputs] == ["[batch,3]"]


def test_nothing_need_lie_beside_it(folder: Path):
    for file in folder.iterdir():
        if file.name != "model.onnx":
            file.unlink()
    graph = read(folder / "model.onnx")
    assert (graph.config, graph.tokenizer, graph.signature.lead.padding) == ({}, None, 0)
    assert graph.signature.max_length == 66  # found by running it: it has 66 positions
    assert graph.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_positions_that_belong_to_no_token_are_not_counted(tmp_path: Path):
    graph = read(write(lora_classifier("roberta"), tmp_path, inputs=2))
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 66
    assert graph.signature.max_length == 65  # RoBERTa's padding, id 0 here, has a position of its own
    assert graph.signature.names == ("input_ids", "attention_mask")


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_a_graph_that_numbers_positions_tells_its_padding(tmp_path: Path, family: str):
    """The positions of 66 that padding's id leaves to tokens, with its id or without a config.json that says it."""
    model = tiny_backbone(family)
    model.config.pad_token_id = 1
    path = write(type(model)(model.config).eval(), tmp_path, inputs=2, dynamo=False, opset=14)
    told = read(path).signature
    (tmp_path / "config.json").unlink()
    assert read(path).signature == told
    assert (told.lead.padding, told.max_length) == (1, 64)


def test_the_layout_of_a_folder_for_several_libraries(folder: Path):
    change_config(folder, id2label={"0": "good", "1": "bad", "2": "so so"})
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    path = folder / "onnx" / "model.onnx"
    assert find_onnx(folder) == path
    graph = read(path)
    assert (graph.beside, graph.labels) == (folder, ("good", "bad", "so so"))
    assert graph.tokenizer is not None
    shutil.copy(folder / "config.json", path.parent)
    change_config(path.parent, id2label={"0": "a", "1": "b", "2": "c"})
    assert read(path).labels == ("a", "b", "c")


def test_an_operator_set_that_nothing_needs(folder: Path):
    path = folder / "model.onnx"
    proto = onnx.load(str(path))
    proto.opset_import.add(domain="ai.coda", version=1)
    onnx.save(proto, str(path))
    assert read(path).task == "sequence-classification"


@pytest.mark.parametrize("kind", ["dynamic", "QDQ"])
def test_a_quantised_file_is_refused(folder: Path, kind: str):
    path, quantised = folder / "model.onnx", folder / "quantised.onnx"
    if kind == "dynamic":
        quantize_dynamic(path, quantised)
    else:
        quantize_static(path, quantised, _Reader())
    with pytest.raises(CompileError, match=r"holds '.+' in u?int8, so it is quantised already: give the file in float"):
        read(quantised)


class _Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = [dict.fromkeys(INPUTS, np.ones((1, 4), np.int64))]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def test_labels_are_the_configuration_s(folder: Path):
    change_config(folder, id2label={"0": "good", "2": "so so", "1": "bad"})
    assert read(folder / "model.onnx").labels == ("good", "bad", "so so")


def test_a_classifier_s_numbered_output_is_called_logits(folder: Path):
    path = folder / "model.onnx"
    proto = onnx.load(str(path))
    rename_output(proto, "1234")
    onnx.save(proto, str(path))
    graph = read(path)
    assert [value.name for value in graph.model.graph.outputs] == ["logits"]
    ids = np.ones((1, 3), np.int64)
    assert list(original(path, graph.model)(dict.fromkeys(graph.signature.names, ids))) == ["logits"]


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rename_output(proto: onnx.ModelProto, name: str) -> None:
    for node in proto.graph.node:
        node.output[:] = [name if one == "logits" else one for one in node.output]
    proto.graph.output[0].name = name


def weight(proto: onnx.ModelProto) -> TensorProto:
    return next(t for t in proto.graph.initializer if len(t.dims) == 2 and t.data_type == TensorProto.FLOAT)


def spoil_weight(proto: onnx.ModelProto) -> None:
    array = numpy_helper.to_array(weight(proto)).copy()
    array[0, 0] = np.nan
    weight(proto).CopyFrom(numpy_helper.from_array(array, weight(proto).name))


def halve_weight(proto: onnx.ModelProto) -> None:
    array = numpy_helper.to_array(weight(proto)).astype(np.float16)
    weight(proto).CopyFrom(numpy_helper.from_array(array, weight(proto).name))


def move_weight(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = weight(proto)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def move_constant(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("c", TensorProto.FLOAT, [1], b"1234", raw=True)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=tensor))

    return change


def take_input(name: str, kind: int, *shape: int | str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        kept = [value for value in proto.graph.input if value.name != name]
        del proto.graph.input[:]
        proto.graph.input.extend([*kept, helper.make_tensor_value_info(name, kind, shape)])

    return change


def drop_mask(proto: onnx.ModelProto) -> None:
    kept = [value for value in proto.graph.input if value.name != "attention_mask"]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def shorten_weight(proto: onnx.ModelProto) -> None:
    weight(proto).raw_data = weight(proto).raw_data[:-4]


SPOILED: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "NaN": (spoil_weight, r"holds NaN or infinite weights in '.+': training diverged"),
    "half": (halve_weight, r"holds '.+' in float16: export it in float32"),
    "outside": (move_weight("../secret"), r"lacks the weights that belong beside it"),
    "absolute": (move_weight("/etc/hostname"), r"lacks the weights that belong beside it"),
    "constant": (move_constant("/etc/hostname"), r"lacks the weights that belong beside it: its weights are '/etc/hos"),
    "absent": (move_weight("absent.data"), r"lacks the weights that belong beside it"),
    "strange": (take_input("position_ids", TensorProto.INT64, "n", "m"), r"takes 'position_ids': a text encoder takes"),
    "no mask": (drop_mask, r"takes no 'attention_mask': a text encoder takes"),
    "int32": (take_input("input_ids", TensorProto.INT32, "n", "m"), r"takes input_ids as int32: export it with"),
    "fixed": (take_input("input_ids", TensorProto.INT64, 1, 8), r"fixes the shape of input_ids: export it with dyn"),
    "unnamed": (
        lambda proto: rename_output(proto, "output"),
        r"gives output: name its outputs when it is exported, logits where it classifies",
    ),
    "broken": (lambda proto: proto.graph.node.pop(3), r"is no model that onnxruntime can run: "),
    "short": (shorten_weight, r"is no ONNX file, is cut off, or"),
    "no outputs": (lambda proto: proto.graph.ClearField("output"), r"has no outputs, or such without a name"),
    "no name": (lambda proto: rename_output(proto, ""), r"has no outputs, or such without a name"),
    "empty": (lambda proto: proto.graph.ClearField("node"), r"is no ONNX file or is cut off: it has no graph"),
}


@pytest.fixture
def apart(folder: Path) -> Path:
    """With its weights beside it."""
    path = folder / "model.onnx"
    onnx.save_model(onnx.load(str(path)), path, save_as_external_data=True, location="weights", size_threshold=1024)
    return folder


def test_weights_beside_it_in_the_cache_of_the_hub(apart: Path, exported: Path, tmp_path: Path):
    path = hub_cache(apart, tmp_path / "cache") / "model.onnx"
    inputs = {name: np.array([[2, 5, 3]]) * (name == "input_ids") + (name == "attention_mask") for name in INPUTS}
    expected = ort.InferenceSession(str(path)).run(["logits"], inputs)[0]
    graph = read(path)
    np.testing.assert_allclose(graph.run(inputs)["logits"], expected, atol=1e-6)
    features = next(str(node.outputs[0].name) for node in graph.model.graph if node.op_type == "MatMul")
    assert features in original(path, graph.model, features=features)(inputs)
    weights = {name: value.const_value for name, value in graph.model.graph.initializers.items()}
    for name, value in read(exported / "model.onnx").model.graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(weights[name].numpy(), value.const_value.numpy())


@pytest.mark.parametrize("fake", ["secret", "cache/blobs/secret"])
def test_weights_that_are_links_to_anything_else(apart: Path, tmp_path: Path, fake: str):
    """A checkout may hold links to whatever its author would like to read, and their bytes would be weights."""
    secret = tmp_path / fake
    secret.parent.mkdir(parents=True, exist_ok=True)
    (apart / "weights").rename(secret)
    (apart / "weights").symlink_to(secret)
    with pytest.raises(CompileError, match=r"has weights that are links out of its folder: copy them there instead"):
        read(apart / "model.onnx")


@pytest.mark.parametrize("name", SPOILED)
def test_what_cannot_be_compiled_is_refused(folder: Path, name: str):
    change, what = SPOILED[name]
    path = folder / "model.onnx"
    change_config(folder, architectures=["BertModel"])
    proto = onnx.load(str(path))
    change(proto)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CompileError, match=rf"^{path}.*{what}"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_file_is_refused(folder: Path, content: bytes | None):
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(CompileError, match=r"is no ONNX file"):
        read(path)


@pytest.mark.parametrize("value", ["x", [], True, -1, 10**9])
def test_a_padding_that_is_no_token(folder: Path, value: object):
    change_config(folder, pad_token_id=value)
    with pytest.raises(
        CompileError, match=r"model.onnx knows 100 tokens, and .* is to be its padding: put the model's"
    ):
        read(folder / "model.onnx")


def test_an_output_whose_shape_nobody_says(folder: Path):
    proto = onnx.load(str(folder / "model.onnx"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    assert read(folder / "model.onnx").model.graph.outputs[0].shape == ir.Shape(["batch", 3])


def test_a_compiled_model_is_refused(compiled: Bundle):
    with pytest.raises(CompileError, match=r"is compiled already: give the model that it was made from"):
        read(compiled.model_path)


def test_a_configuration_of_another_model_is_refused(folder: Path):
    change_config(folder, id2label={"0": "a", "1": "b"})
    with pytest.raises(CompileError, match=r"config.json names classes 0, 1 where the logits have 0 to 2"):
        read(folder / "model.onnx")
    (folder / "config.json").write_text("[")
    with pytest.raises(CompileError, match=r"config.json is damaged: it should be a Hugging Face configuration"):
        read(folder / "model.onnx")


def test_what_needs_a_model_says_so(exported: Path):
    for path in (exported, exported / "model.onnx"):
        with pytest.raises(CompileError, match=r"is an ONNX file, which can be compiled and no more: give what it"):
            read_source(path)
