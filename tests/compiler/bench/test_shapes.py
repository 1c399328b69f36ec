"""Known sizes with random weights."""

import pytest
import torch
from tests.conftest import example_inputs

from coda_compile.bench.shapes import SHAPES, random_model
from coda_compile.errors import CodaError


def test_minilm_has_its_published_size():
    model = random_model("minilm-l6")
    assert (len(model.layers), model.hf_config.hidden_size, model.signature.max_length) == (6, 384, 512)
    assert 22e6 < sum(p.numel() for p in model.parameters()) < 24e6
    inputs = example_inputs(model, 1, 24)
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, random_model("minilm-l6")(**inputs).logits)


def test_unknown_shapes_list_the_known():
    with pytest.raises(CodaError, match=f"shape 'huge' is unknown: use one of {', '.join(SHAPES)}"):
        random_model("huge")
