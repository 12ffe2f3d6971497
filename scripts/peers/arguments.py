"""The flags that `experiments.quantizers.making` gives to every peer."""

import argparse
from pathlib import Path


def parser(description: str) -> argparse.ArgumentParser:
    """With the flags of all; a peer adds its own."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--calibration", type=Path, required=True, help="ids, safetensors")
    made.add_argument("--group-size", type=int, required=True)
    made.add_argument("--steps", type=int, required=True, help="of peers that learn")
    made.add_argument("--device", required=True)
    return made
