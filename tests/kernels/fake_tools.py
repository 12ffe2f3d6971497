"""nvcc, cmake and the others as shell scripts that answer like them and build nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
--list-gpu-arch) for one in {architectures}; do echo "compute_$one"; done ;;
esac
"""
# Writes its arguments down; makes the library in the build folder, or fails in the words given.
CMAKE = """#!/bin/sh
echo "$@" >> "{log}"
if [ "$1" = --build ]; then
    echo "[1/2] Building CUDA object kernels/one.cu.o"
    {failure}
    echo library > "$2/libawq_edge_kernels.so"
    {plugin}
else
    echo "-- The CUDA compiler identification is NVIDIA"
    {configure}
fi
"""
NO_HEADERS = "libawq_edge_plugin.so: NOT BUILT: NvInfer.h is in none of the usual folders"


@dataclass(frozen=True)
class FakeTools:
    """A folder `bin` to be alone on PATH. calls: what cmake was called with."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def calls(self) -> list[str]:
        log = self.folder / "cmake.log"
        return log.read_text().splitlines() if log.exists() else []

    def nvcc(
        self,
        version: str = "13.0",
        architectures: str = "75 80 86 87 89 90 110 120",
        at: Path | None = None,
    ) -> Path:
        text = NVCC.format(version=version, architectures=architectures)
        return self.program("nvcc", text, at=at)

    def cmake(
        self, *, failure: str = ":", plugin: str = ":", configure: str = f'echo "-- {NO_HEADERS}"'
    ) -> Path:
        text = CMAKE.format(
            log=self.folder / "cmake.log", failure=failure, plugin=plugin, configure=configure
        )
        return self.program("cmake", text)

    def program(self, name: str, text: str = "#!/bin/sh\n", at: Path | None = None) -> Path:
        path = (at or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def all(self) -> FakeTools:
        self.nvcc()
        self.cmake()
        self.program("ninja")
        self.program("c++")
        return self
