"""Classifiers with an unmerged LoRA of PEFT, as torch's two exporters write them."""

import warnings
from pathlib import Path

import peft
import torch
from tests import exporting
from tests.conftest import tiny_backbone
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

NAMES = ("input_ids", "attention_mask", "token_type_ids")


class Positional(nn.Module):
    """A model as exporters take it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.model(**dict(zip(NAMES, inputs, strict=False)))["logits"]
        return output


def with_lora(model: PreTrainedModel, task: str = "SEQ_CLS") -> peft.PeftModel:
    """A LoRA that matters on queries and values, not merged."""
    torch.manual_seed(5)
    config = peft.LoraConfig(task_type=task, r=4, target_modules=["query", "value"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def lora_classifier(family: str = "bert") -> peft.PeftModel:
    """A tiny one."""
    return with_lora(tiny_backbone(family))


def write(
    model: nn.Module,
    folder: Path,
    *,
    dynamo: bool = True,
    inputs: int = 3,
    output: str = "logits",
    opset: int = 20,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Export a model to ``model.onnx`` in a folder, its configuration and tokenizer beside it.

    The tests of a session export the same model once.
    """
    options = {"dynamo": dynamo, "inputs": inputs, "output": output, "opset": opset}
    exporting.shared.copy(Positional(model).eval(), options, _export, folder)
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    config = getattr(base, "config", None)
    if config is not None:
        config.architectures = [type(base).__name__]
        config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder / "model.onnx"


def _export(model: nn.Module, folder: Path, *, dynamo: bool, inputs: int, output: str, opset: int) -> None:
    ids = torch.randint(4, 90, (2, 11), generator=torch.Generator().manual_seed(0))
    example = (ids, torch.ones_like(ids), torch.zeros_like(ids))[:inputs]
    names = list(NAMES[:inputs])
    dynamic = torch.export.Dim.DYNAMIC
    axes = {
        False: {"dynamic_axes": {name: {0: "rows", 1: "columns"} for name in names}},
        True: {"dynamic_shapes": {"inputs": ({0: dynamic, 1: dynamic},) * inputs}},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            example,
            str(folder / "model.onnx"),
            dynamo=dynamo,
            input_names=names,
            output_names=[output],
            opset_version=opset,
            verbose=False,
            **axes[dynamo],
        )
