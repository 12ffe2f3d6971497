"""Whether two commits quantize a model to the same bytes, by every method, on this machine.

    python scripts/compare_checkpoints.py 3cbabfe HEAD                  # the demo model
    python scripts/compare_checkpoints.py 3cbabfe HEAD --model DIR --group-size 64

Codes depend on sums, and sums on the CPU: checkpoints of two machines differ in bits, and no test
can hold them. Round-to-nearest alone is the same everywhere (tests/quantizer has its hash).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Options of `awq-edge quantize`, one checkpoint each.
RUNS = (
    "--method rtn",
    "--method rtn --format compressed-tensors --lm-head-bits 4",
    "--method awq",
    "--method gptq",
    "--method awq+gptq",
    "--method awq+gptq --bits 3 --lm-head-bits 8",
    "--method awq --scheme symmetric --format compressed-tensors --lm-head-bits 4",
    "--method gptq --bits 2 --lm-head-bits 4",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revisions", nargs=2, metavar="COMMIT")
    parser.add_argument("--model", type=Path, default=ROOT / "awq_edge/data/demo")
    parser.add_argument("--group-size", default="32")
    parser.add_argument("--samples", default="8")
    parser.add_argument("--length", default="128")
    given = parser.parse_args()
    size = ["--group-size", given.group_size]
    drawn = ["--samples", given.samples, "--length", given.length]
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        for options in RUNS:
            arguments = [*options.split(), *size, *([] if "rtn" in options else drawn)]
            digests = [
                quantized(Path(folder), revision, given.model.resolve(), arguments)
                for revision in given.revisions
            ]
            same = digests[0] == digests[1]
            differing += not same
            print(f"{'same' if same else 'DIFFERENT':9}  {digests[0]}  {options}", flush=True)
    return 1 if differing else 0


def quantized(folder: Path, revision: str, model: Path, arguments: list[str]) -> str:
    """sha256, shortened, of the weights that a commit's quantizer makes."""
    source = folder / "source" / revision.replace("/", "_")
    if not source.exists():
        source.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-x"], cwd=source, input=archive.stdout, check=True)
    out = folder / "out"
    subprocess.run(
        [sys.executable, "-m", "awq_edge", "quantize", model, "--out", out, *arguments],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    digest = hashlib.sha256()
    for file in sorted([*out.glob("*.safetensors"), out / "config.json"]):
        digest.update(file.read_bytes())
    subprocess.run(["rm", "-r", out], check=True)
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
