"""Shows with the reference implementation of safetensors that it reads what we write, and that we read what it writes.

    archive_readers_test.py PROGRAM FOLDER

PROGRAM is enwik8, which computes from a model that the reference has written and writes what the reference reads.
FOLDER is where scripts/make_test_python puts a Python with the modules needed; one without them hands over to it.
"""

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
DATA = Path(__file__).parent / "data"
GOLDEN = Path(__file__).parent.parent / "golden" / "dense"

try:
    import safetensors
    from safetensors.numpy import load_file, save_file
except ImportError as error:
    python = FOLDER / "bin" / "python3"
    if python.exists() and sys.executable != str(python):
        os.execv(python, [str(python), *sys.argv])
    print(f"skipped: {error}; scripts/make_test_python {FOLDER} fetches what is needed")
    sys.exit()

WRITTEN = {  # as small_model() in archive_test.cpp
    "bytes": ("U8", [3], struct.pack("<3B", 1, 2, 3)),
    "weight": ("F32", [2, 3], struct.pack("<6f", 1, -2, 3, -4, 5, -6)),
    "scalar": ("F64", [], struct.pack("<d", 0.1)),
    "none": ("F32", [0, 4], b""),
    "half": ("F16", [5], struct.pack("<5e", *[1.5] * 5)),
    "brain": ("BF16", [5], struct.pack("<f", -2.5)[2:] * 5),  # the upper half of an f32
    "tokens": ("I32", [1, 2], struct.pack("<2i", 7, -7)),
    "steps": ("I64", [1], struct.pack("<q", -(2**63))),
}


def run(*arguments):
    done = subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def metadata(path):
    with safetensors.safe_open(path, "numpy") as archive:
        return archive.metadata()


def reference_reads_every_dtype():
    content = (DATA / "written.safetensors").read_bytes()  # archive_test.cpp checks that it is what we write
    tensors = {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in safetensors.deserialize(content)}
    assert tensors == WRITTEN, tensors
    assert (8 + struct.unpack_from("<Q", content)[0]) % 64 == 0, "data begin at a multiple of 64 bytes"
    assert metadata(DATA / "written.safetensors") == {"format": "pt", "quote": '"é"\n'}


def reference_file_is_what_archive_test_reads():
    tensors = load_file(DATA / "reference.safetensors")
    assert tensors["weight"].tolist() == [[-2.5, -1.5, -0.5], [0.5, 1.5, 2.5]], tensors["weight"]
    assert tensors["empty"].shape == (0, 3)


def a_model_goes_both_ways(folder):
    golden, tokens = GOLDEN / "model.safetensors", GOLDEN / "tokens.bin"
    theirs = folder / "theirs.safetensors"
    save_file(load_file(golden), theirs, metadata(golden))
    for model, out in (golden, "a"), (theirs, "b"):
        run("parity", "--checkpoint", model, "--tokens", tokens, "--out", folder / out)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    weights, results = load_file(golden), load_file(folder / "a")
    assert set(results) == {"loss", "logits"} | {f"grad.{name}" for name in weights}, set(results)
    assert all(results[f"grad.{name}"].shape == weight.shape for name, weight in weights.items())

    run("parity", "--init-only", "--set", "n_layers=1", "--out", folder / "initial")
    initial = load_file(folder / "initial")
    assert initial["embedding.token"].shape == (256, 128), initial["embedding.token"].shape
    assert metadata(folder / "initial")["n_layers"] == "1", metadata(folder / "initial")


reference_reads_every_dtype()
reference_file_is_what_archive_test_reads()
with tempfile.TemporaryDirectory() as temporary:
    a_model_goes_both_ways(Path(temporary))
print(f"safetensors {safetensors.__version__} and Lacuna read each other's files")
