"""Remove the metadata that the exporter writes about its own run."""

import onnx_ir as ir

from coda_compile.export import TAGS


class StripExportMetadata(ir.passes.InPlacePass):
    """Drop stack traces, source paths and doc strings; keep our own tags.

    They would tell where a model was built, and differ between builds of the same model.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Strip model, graph, values and nodes."""
        modified = False
        graph = model.graph
        values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
        for notes in (model.metadata_props, graph.metadata_props, *(value.metadata_props for value in values)):
            modified |= bool(notes)
            notes.clear()
        for node in graph:
            for key in [key for key in node.metadata_props if key not in TAGS]:
                del node.metadata_props[key]
                modified = True
            modified |= bool(node.doc_string)
            node.doc_string = None
        for owner in (model, graph):
            modified |= bool(owner.doc_string)
            owner.doc_string = None
        return ir.passes.PassResult(model, modified)
