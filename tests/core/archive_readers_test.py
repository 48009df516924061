"""Opens data/written.safetensors, which is what write_archive writes, with the format's reference implementation."""

import struct
import sys
from pathlib import Path

try:
    import safetensors
except ImportError:
    print("skipped: needs the Python module safetensors")
    sys.exit()

EXPECTED = {  # as small_model() in archive_test.cpp
    "bytes": ("U8", [3], struct.pack("<3B", 1, 2, 3)),
    "weight": ("F32", [2, 3], struct.pack("<6f", 1, -2, 3, -4, 5, -6)),
    "scalar": ("F64", [], struct.pack("<d", 0.1)),
    "none": ("F32", [0, 4], b""),
    "half": ("F16", [5], struct.pack("<5e", *[1.5] * 5)),
    "brain": ("BF16", [5], struct.pack("<f", -2.5)[2:] * 5),  # the upper half of an f32
    "tokens": ("I32", [1, 2], struct.pack("<2i", 7, -7)),
    "steps": ("I64", [1], struct.pack("<q", -(2**63))),
}

content = (Path(__file__).parent / "data" / "written.safetensors").read_bytes()
tensors = {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in safetensors.deserialize(content)}
assert tensors == EXPECTED, tensors
assert (8 + struct.unpack_from("<Q", content)[0]) % 64 == 0, "data begin at a multiple of 64 bytes"
