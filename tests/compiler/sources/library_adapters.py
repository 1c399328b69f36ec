"""Models of the adapters library to compare with, small and of random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import torch
from tests.conftest import tiny_backbone
from tests.json_files import edit

CONFIGS: dict[str, Any] = {
    "Houlsby": adapters.DoubleSeqBnConfig(reduction_factor=8),
    "Pfeiffer": adapters.SeqBnConfig(reduction_factor=8),
    "parallel": adapters.ParBnConfig(reduction_factor=4),
    "Pfeiffer with an invertible adapter": adapters.SeqBnInvConfig(reduction_factor=8),
    "another activation and size for each layer": adapters.DoubleSeqBnConfig(
        non_linearity="gelu_new", reduction_factor={"0": 4, "default": 16}
    ),
    "leaky": adapters.SeqBnConfig(non_linearity="leakyrelu", reduction_factor=8),
    "a learned scale": adapters.ParBnConfig(scaling="learned", reduction_factor=8),
    "a scale for each channel": adapters.SeqBnConfig(scaling="channel", reduction_factor=8),
    "norms of its own": adapters.SeqBnConfig(ln_before=True, ln_after=True, reduction_factor=8),
    "norm behind its residual": adapters.SeqBnConfig(
        ln_after=True, adapter_residual_before_ln=True, reduction_factor=8
    ),
    "residual behind the sum": adapters.SeqBnConfig(residual_before_ln="post_add", reduction_factor=8),
    "residual behind the norm": adapters.SeqBnConfig(residual_before_ln=False, reduction_factor=8),
    "no norm behind it": adapters.SeqBnConfig(original_ln_after=False, reduction_factor=8),
    "layers left out": adapters.DoubleSeqBnConfig(leave_out=[0], reduction_factor=8),
    "LoRA": adapters.LoRAConfig(r=4, alpha=8, intermediate_lora=True, output_lora=True),
    "IA3": adapters.IA3Config(),
    "a LoRA that scales": adapters.LoRAConfig(r=1, composition_mode="scale", alpha=2, init_weights="ia3"),
    "DoRA": adapters.DoRAConfig(r=4, alpha=8, intermediate_lora=True),
    "VeRA": adapters.VeraConfig(r=4),
    "prefix": adapters.PrefixTuningConfig(prefix_length=5, bottleneck_size=16),
    "flat prefix": adapters.PrefixTuningConfig(prefix_length=5, flat=True),
    "prefix and parallel": adapters.MAMConfig(
        adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=16), adapters.ParBnConfig(reduction_factor=4)
    ),
}


SEVERAL = "multi_label_classification"


def library_model(base: Path, family: str = "bert") -> Any:
    if not base.exists():
        model = tiny_backbone("roberta" if family == "xlm-roberta" else family, "feature-extraction")
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "norm" not in name.lower():  # as every trained one has
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(base)
        if family == "xlm-roberta":
            edit(base / "config.json", model_type="xlm-roberta")
    return adapters.AutoAdapterModel.from_pretrained(base)


def randomise(model: Any) -> None:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("adapters.", "loras", "prefix_tuning", "heads", "invertible")):
            torch.nn.init.normal_(parameter, std=0.3)


def saved(folder: Path, config: Any, family: str = "bert", head: Callable[[Any], None] | None = None) -> Any:
    """A library model with one adapter of random weights, saved in ``folder`` on a base in ``folder``-base."""
    folder.mkdir()
    model = library_model(folder.with_name(f"{folder.name}-base"), family)
    model.add_adapter("task", config=config)
    if head is None:
        model.add_classification_head("task", num_labels=3)
    else:
        head(model)
    model.active_adapters = "task"
    randomise(model)
    model.eval().save_adapter(str(folder), "task")
    return model
