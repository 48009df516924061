"""What scripts/gpu_check measures is kept and judged here: its files, the goals, and the table that ends its output."""

import json
import time
from typing import NamedTuple

# On an H200, in the same units as the rows: (accept, target). Rows without goals are for information.
KERNEL_GOALS = {  # useful TF/s, forward and backward
    "attention/column-24-qk64-v128": ((15, 19), (18, 24)),
    "attention/column-96-width-32": ((57, 75), (68, 94)),
    "attention/column-96-width-64": ((57, 75), (68, 94)),
    "attention/column-256-width-128": ((200, 300), (160, 260)),
    "attention/column-512-width-64": ((200, 300), (160, 260)),
    "attention/column-1024-width-64": ((200, 420), (160, 350)),
    "attention/block-128-width-64": ((75, 100), (90, 125)),
    "attention/local-128-width-32": ((110, 165), (110, 170)),
    "attention/local-128-width-64": ((140, 190), (140, 200)),
    "attention/local-1024-width-64": ((230, 350), (180, 300)),
    "attention/strided-merged-width-64": ((120, 175), (95, 145)),
    "attention/summary-width-64": ((270, 400), (210, 330)),
    "attention/fixed-merged-width-64": ((250, 380), (190, 300)),
    "attention/dense-width-64": ((270, 420), (220, 360)),
    "attention/dense-width-128": ((300, 560), (250, 450)),
}
TRAFFIC_GOALS = {"layer-norm/512/backward": (3200, 3600), "adam/152M": (3400, 3700)}  # GB/s

class Model(NamedTuple):
    batch: int                # sequences in a step on an H200
    gib: tuple                # memory beside activations, and of the activations of a sequence (`plan`, nothing recomputed)
    tokens: tuple = None      # goals in thousands of tokens/s
    rival: tuple = None       # goals as a multiple of PyTorch's


TRAINING = {  # by program/preset; those with goals first
    "cifar10/cifar10-59m-strided": Model(16, (2, 2.1), (620, 740), (1.25, 1.6)),
    "enwik8/enwik8-95m-fixed": Model(8, (4, 5.7), (325, 450), (1.25, 1.8)),
    "imagenet64/imagenet64-152m": Model(12, (6, 9.1), (425, 500), (1.25, 1.5)),
    "imagenet64/imagenet64-1.5b": Model(2, (31, 30.6), (57, 63), (1.05, 1.2)),
    "cifar10/cifar10-59m-dense": Model(16, (2, 2.1)),
    "cifar10/cifar10-59m-fixed": Model(16, (2, 2.1)),
    "enwik8/enwik8-95m-dense": Model(8, (4, 5.7)),
    "enwik8/enwik8-95m-strided": Model(8, (4, 5.7)),
}
SAMPLING = {  # samples drawn at once, memory beside them and of each, goals in samples/s
    "cifar10/cifar10-59m-strided": Model(256, (2, 0.4), (20, 40)),
    "imagenet64/imagenet64-152m": Model(128, (4, 1.3), (5, 10)),
}
# Seconds per step of dense attention over those of the pattern, Table 2 of the paper (8 V100).
TABLE_2 = {"cifar10/cifar10-59m-fixed": 0.54 / 0.47, "cifar10/cifar10-59m-strided": 0.54 / 0.38,
           "enwik8/enwik8-95m-fixed": 1.31 / 0.55, "enwik8/enwik8-95m-strided": 1.31 / 0.35}


class Result:
    """What a stage has found so far, in its file after every change."""

    def __init__(self, path, stage, limit_s):
        self.path, self.start = path, time.monotonic()
        self.data = {"stage": stage, "status": "running", "limit_s": round(limit_s),
                     "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commands": [], "rows": []}
        self.save()

    def save(self):
        self.data["seconds"] = round(time.monotonic() - self.start, 1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        temporary.replace(self.path)

    def set(self, **values):
        self.data.update(values)
        self.save()

    def add(self, row):
        self.data["rows"].append(row)
        self.save()


def read_result(path):
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def why(row):
    """Why there is no number, in a line of the table."""
    return row.get("failed", "").split("\n")[0][:120]


def memory(row):
    """What tensors had at most, and what the whole GPU had at the end."""
    whole = row.get("device_memory_bytes")
    return f"{row['peak_tensor_bytes'] / 2**30:.1f} GiB" + (f" (GPU {whole / 2**30:.1f})" if whole else "")


def judge(measured, goals):
    accept, target = goals
    return "reaches the target" if measured >= target else "accepted" if measured >= accept else "BELOW"


def summary_lines(out, names):
    """A table of what the files in `out` say, beside the goals."""
    results = {name: read_result(out / f"{name}.json") for name in names}
    machine = results["device"].get("machine") or results["kernels"].get("machine") or {}
    yield f"{machine.get('device', 'no GPU')}, results in {out}"
    if machine and "H200" not in machine["device"]:
        yield "The goals are those of an H200; this is another GPU."
    yield "  ".join(f"{name} {r.get('status', 'not run')}" for name, r in results.items())
    head, form = True, "{:<44} {:>10} {:>8} {:>8}  {}"

    def row(name, measured, goals, unit, more=""):
        nonlocal head
        if head:
            yield form.format("", "measured", "accept", "target", "")
            head = False
        accept, target = goals or ("", "")
        if measured is None:  # JSON has no infinity
            yield form.format(name, "no number", accept, target, more)
            return
        yield form.format(name, f"{measured:.4g} {unit}", accept, target, (judge(measured, goals) if goals else "") + more)

    for name in ("copy_gb_per_s", "matmul_8192_tflops", "launch_us", "launch_in_graph_us"):
        if machine.get(name) is not None:
            yield from row(name, machine[name], None, "")
    for r in results["kernels"].get("rows", []):
        if "us" not in r:
            yield form.format(r["name"], "failed", "", "", why(r))
            continue
        base, _, which = r["name"].rpartition("/")
        share = f"  {r['us']:.0f} us, {100 * (r['roofline'] or 0):.0f}% of the roofline"
        share += f", {r['kernel']}" if "kernel" in r else ""
        if base in KERNEL_GOALS:
            yield from row(r["name"], r["useful_tflops"], KERNEL_GOALS[base][which == "backward"], "TF", share)
        elif r["name"] in TRAFFIC_GOALS or not r["useful_flops"]:
            yield from row(r["name"], r["gb_per_s"], TRAFFIC_GOALS.get(r["name"]), "GB/s", share)
        else:
            yield from row(r["name"], r["useful_tflops"], None, "TF", share)
    for r in results["training"].get("rows", []):
        if "tokens_per_s" not in r:
            yield form.format(r["name"], "failed", "", "", why(r))
            continue
        mfu = f"MFU {100 * r['mfu']:.1f}%, " if r.get("mfu") else ""
        yield from row(r["name"], r["tokens_per_s"] / 1e3, TRAINING[r["name"]].tokens, "k/s",
                       f"  {mfu}{memory(r)}, loss {r['losses_nats'][0]:.2f} to "
                       f"{r['losses_nats'][-1]:.2f} nats" + (", recompute" if r["recompute"] else ""))
    for r in results["training"].get("table_2", []):
        yield from row(f"Table 2: dense / {r['preset'].split('/')[1]}", r["dense_over_this"], None, "x", f"paper {r['paper']:.2f}x")
    for r in results.get("sampling", {}).get("rows", []):
        if "failed" in r:
            yield form.format(f"sampling: {r['name']}", "failed", "", "", why(r))
        elif "samples_per_s" in r:
            more = f"  {r['samples']} at once, {memory(r)}"
            more += f", by {r['positions']} of {r['length']} positions" if r["positions"] < r["length"] else ""
            yield from row(f"sampling: {r['name']}", r["samples_per_s"], SAMPLING[r["name"]].tokens, "/s", more)
    fastest = {}
    for r in results.get("pytorch", {}).get("rows", []):
        if "ours_is_faster" in r and r["ours_is_faster"] < fastest.get(r["name"], r)["ours_is_faster"] + 1e-9:
            fastest[r["name"]] = r
    for name, r in fastest.items():
        yield from row(f"against PyTorch: {name}", r["ours_is_faster"], TRAINING[name].rival, "x", f"  {r['pytorch']}, {r['attention_kernel']}")
