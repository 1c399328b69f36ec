"""The same file in Node.js: needs node, and onnxruntime-node installed in examples/node."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from coda_targets import Bundle
from coda_targets.manifest import ACTIVATIONS, MANIFEST
from coda_targets.modalities.text import scores

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
    wanted = torch.from_numpy(expected).softmax(-1).numpy()
    np.testing.assert_allclose(np.reshape(answer["scores"]["data"], expected.shape), wanted, atol=2e-5)


def test_node_makes_the_scores_that_the_manifest_names(copied: Path, tmp_path: Path):
    """An activation of the manifest is what Python makes of the same logits."""
    inputs = {"input_ids": [[2, 5, 3], [2, 9, 3]], "attention_mask": [[1] * 3] * 2, "token_type_ids": [[0] * 3] * 2}
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    plain = json.loads((copied / MANIFEST).read_text("utf-8"))
    for activation in ACTIVATIONS:
        plain["logits"]["activation"] = activation
        (copied / MANIFEST).write_text(json.dumps(plain))
        command = ["node", str(EXAMPLE / "predict.mjs"), str(copied), str(tmp_path / "inputs.json")]
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        logits = np.reshape(answer["logits"]["data"], answer["logits"]["dims"])
        made = np.reshape(answer["scores"]["data"], answer["scores"]["dims"])
        np.testing.assert_allclose(made, scores(logits, activation), atol=1e-12)
