"""What the exporter notes about its own run must not reach the file."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from coda_compile.export import TAGS, save_onnx
from coda_compile.passes.strip_export_metadata import StripExportMetadata

TRACES = ("stack_trace", "site-packages", "pkg.torch", str(Path(__file__).parents[3]))


def test_traces_are_gone_from_the_file(raw: ir.Model, tmp_path: Path):
    save_onnx(raw, tmp_path / "before.onnx")
    assert StripExportMetadata()(raw).modified
    save_onnx(raw, tmp_path / "after.onnx")
    before, after = ((tmp_path / f"{name}.onnx").read_bytes() for name in ("before", "after"))
    for trace in TRACES:
        assert trace.encode() in before, f"{trace} was never there: this test cannot fail"
        assert trace.encode() not in after


def test_tags_stay(raw: ir.Model):
    def tags() -> list[dict[str, str]]:
        return [{key: node.metadata_props[key] for key in TAGS if key in node.metadata_props} for node in raw.graph]

    before = tags()
    StripExportMetadata()(raw)
    assert tags() == before
    assert all(set(node.metadata_props) <= set(TAGS) for node in raw.graph)


def test_nothing_but_metadata_changes(raw: ir.Model):
    def shape() -> list[tuple[str, list[str | None], list[str | None]]]:
        return [(n.op_type, [v and v.name for v in n.inputs], [v.name for v in n.outputs]) for n in raw.graph]

    before = shape()
    StripExportMetadata()(raw)
    assert shape() == before


def test_every_kind_of_note_is_dropped(plain: Callable[[], ir.Model]):
    model = plain()
    node = next(iter(model.graph))
    for item in (model, model.graph, node, node.outputs[0], model.graph.inputs[0]):
        item.metadata_props["from"] = "/home/somebody"
    for item in (model, model.graph, node):
        item.doc_string = "made in /home/somebody"
    assert StripExportMetadata()(model).modified
    assert b"somebody" not in ir.to_proto(model).SerializeToString()


def test_nothing_to_strip(plain: Callable[[], ir.Model], raw: ir.Model):
    assert not StripExportMetadata()(plain()).modified
    StripExportMetadata()(raw)
    assert not StripExportMetadata()(raw).modified
