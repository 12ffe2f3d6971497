"""A kernel library of plain C: every function of the header, none of which computes anything."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from awq_edge.kernels import interface


@dataclass(frozen=True)
class FakeLibrary:
    """What awq_edge_... answer. omit: a function that is missing. status: of every call."""

    abi_version: int = interface.ABI_VERSION
    layout_version: int = interface.LAYOUT_VERSION
    architectures: str = "80,86,87,89,90,120"
    cuda_version: int = 12060
    last_error: str = ""
    status: int = 0
    workspace: int = 0
    omit: str = ""

    def build(self, gcc: str, path: Path) -> Path:
        """Compile it to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        source = path.with_suffix(".c")
        source.write_text(self._source())
        subprocess.run([gcc, "-shared", "-fPIC", "-o", path, source], check=True)
        return path

    def _source(self) -> str:
        bodies = {
            "awq_edge_abi_version": f"int F(void) {{ return {self.abi_version}; }}",
            "awq_edge_layout_version": f"int F(void) {{ return {self.layout_version}; }}",
            "awq_edge_status_message": 'const char* F(int s) { return s ? "refused" : "fine"; }',
            "awq_edge_last_error": f'const char* F(void) {{ return "{self.last_error}"; }}',
            "awq_edge_architectures": f'const char* F(void) {{ return "{self.architectures}"; }}',
            "awq_edge_cuda_version": f"int F(void) {{ return {self.cuda_version}; }}",
            "awq_edge_sample_workspace": (
                "int F(int rows, int vocab, unsigned long* bytes) "
                f"{{ *bytes = {self.workspace} + rows * 1000 + vocab; return {self.status}; }}"
            ),
            # Adds the last argument but one to what the first points to.
            "awq_edge_advance": (
                "int F(long long* length, int batch, long long by, void* stream) "
                f"{{ for (int i = 0; i < batch; ++i) length[i] += by; return {self.status}; }}"
            ),
        }
        default = f"int F() {{ return {self.status}; }}"
        return "".join(
            f"{bodies.get(name, default).replace('F', name, 1)}\n"
            for name in (*interface.QUERIES, *interface.FUNCTIONS)
            if name != self.omit
        )
