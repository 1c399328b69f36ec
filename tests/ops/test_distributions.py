"""What is installed is known by its version."""

import onnxruntime

from coda_ops.distributions import installed_version


def test_a_version_or_nothing():
    assert installed_version("onnxruntime") == onnxruntime.__version__
    assert installed_version("no-such-distribution") == ""
