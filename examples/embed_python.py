"""Embed a bundle in an app: onnxruntime, numpy and tokenizers, no torch.

python examples/embed_python.py build/demo/coda
"""

import sys

from coda_targets import Bundle

bundle = Bundle(sys.argv[1])
bundle.check()  # every file has the SHA-256 that the manifest records
for record in bundle.predict(["A slow start, then a triumph.", "Two hours that I will never get back."]):
    print(record)
