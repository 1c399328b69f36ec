"""Build native CPU kernels into wheels and editable installs, where a C++ compiler is; CUDA's come along once built."""

import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "ops"))

from coda_ops import native


class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]
    """A wheel with kernels is tagged with its platform; without them it is pure, and just as complete."""

    def dependencies(self) -> list[str]:
        """CMake for the build alone, where everything else is there."""
        wanted = self.target_name == "wheel" and not native.switched_off()
        able = native.compiler() is not None
        return ["cmake>=3.18"] if wanted and able and shutil.which("cmake") is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, or say in one line why not."""
        if self.target_name != "wheel":
            return
        libraries = []
        try:
            if native.switched_off():
                raise native.KernelError(f"{native.SWITCH} is portable")
            libraries += [path for name in native.LIBRARIES if name != "cpu" and (path := native.library(name))]
            libraries.append(native.build_kernels())
        except native.KernelError as error:
            self.app.display_warning(f"without native kernels for CPUs: {error}")
        if not libraries:
            return
        root = Path(self.root).resolve()
        build_data["artifacts"] += [library.relative_to(root).as_posix() for library in libraries]
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
