"""RTX cards through TensorRT-RTX, which builds its engines ahead of time, on machines without a GPU too."""

from pathlib import Path

from coda_compile.backends import tensorrt_engines
from coda_compile.backends.tensorrt import TensorrtBackend
from coda_targets.profile import Profile
from coda_targets.proofs import BUILD, ProofInfo
from coda_targets.runtimes.tensorrt_rtx import RUNTIME
from coda_targets.signature import Signature

# Ampere of data centres, Ampere, Ada and Blackwell.
ARCHITECTURES = ("SM80", "SM86", "SM89", "SM120")


class TensorrtRtxBackend(TensorrtBackend):
    """The form of TensorRT, shown to build wherever the builder is."""

    def prove(self, path: Path, signature: Signature) -> tuple[ProofInfo, ...]:
        """Build an engine for every architecture, which needs no card.

        Raises:
            CompileError: what the parser or the builder says.
        """
        if not tensorrt_engines.available():
            return ()
        profile = self.runtime.profile or Profile.of(signature)
        built = tensorrt_engines.build(path, signature, profile, ARCHITECTURES)
        return (ProofInfo(BUILD, f"{', '.join(ARCHITECTURES)} by TensorRT-RTX {built.version}"),)


BACKEND = TensorrtRtxBackend(runtime=RUNTIME, opset=20, precisions=("fp32", "fp16"))
