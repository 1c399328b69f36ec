"""The same file in Node.js: needs node, and onnxruntime-node installed in examples/node."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from coda_targets import Bundle

pytestmark = pytest.mark.node
EXAMPLE = Path(__file__).parents[2] / "examples" / "node"


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 2), (3, 13), (4, 64)])
def test_node_equals_python(compiled: Bundle, tmp_path: Path, batch: int, tokens: int):
    random = np.random.default_rng([batch, tokens])
    ids = random.integers(4, 100, (batch, tokens))
    mask = (np.arange(tokens) < random.integers(1, tokens + 1, (batch, 1))).astype(int)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({name: array.tolist() for name, array in inputs.items()}))
    command = ["node", str(EXAMPLE / "predict.mjs"), str(compiled.folder), str(file)]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    expected = compiled.run(inputs)["logits"]
    assert answer["logits"]["dims"] == list(expected.shape)
    np.testing.assert_allclose(np.reshape(answer["logits"]["data"], expected.shape), expected, atol=2e-5)
