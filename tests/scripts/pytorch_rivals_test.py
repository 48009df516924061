"""The rivals of benchmarks/pytorch compute our models: loss, logits and gradients of tests/golden, in f64.

Needs a Python with torch: $PYTHON, or python3. Without one it is skipped, with code 77.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("PYTHON", "python3")
RIVALS = [["train_step.py", "--json"], ["gpu_train_step.py", "--device", "cpu", "--eager", "--way", "natural"],
          ["gpu_train_step.py", "--device", "cpu", "--eager", "--way", "permuted"]]
TOLERANCE = 1e-9  # of the largest number of each tensor; f64 and a few hundred terms leave 1e-13


def difference(rival, golden):
    """How far the rival is from a golden file at most, or None when it fails."""
    command = [PYTHON, ROOT / "benchmarks/pytorch" / rival[0], *rival[1:], "--steps", "0", "--dtype", "f64", "--weights",
               golden / "model.safetensors", "--tokens", golden / "tokens.bin", "--expected", golden / "expected.safetensors"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1])["difference"] if done.returncode == 0 else None


def main():
    if subprocess.run([PYTHON, "-c", "import torch"], stderr=subprocess.DEVNULL, check=False).returncode != 0:
        print(f"skipped: {PYTHON} cannot import torch; $PYTHON names one that can")
        return 77
    models = sorted(path.parent for path in (ROOT / "tests/golden").glob("*/model.safetensors"))
    failures = 0
    for golden in models:
        for rival in RIVALS:
            far = difference(rival, golden)
            failures += far is None or not far <= TOLERANCE
            print(f"{golden.name} {' '.join(rival)}: {far}", flush=True)
    print(f"{len(models)} models, {len(RIVALS)} rivals: {failures} failed")
    return 1 if failures or not models else 0


if __name__ == "__main__":
    sys.exit(main())
