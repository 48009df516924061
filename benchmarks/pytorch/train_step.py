#!/usr/bin/env python3
"""The rival: the same model trained by PyTorch on the CPU, with dense attention under the pattern's mask.

    train_step.py                                      d = 256, 8 layers, 4 heads, n = 3072, strided, f32
    train_step.py --attention dense                    causal attention instead, which PyTorch need not mask
    train_step.py --kernel products                    the matrix of scores, a softmax, a second product
    train_step.py --compile                            through torch.compile, which takes half a minute first
    train_step.py --weights model.safetensors --tokens tokens.bin [--steps 0]
                                                       a model of ours: its loss, then the time of its steps
    train_step.py ... --expected expected.safetensors  compares loss, logits and gradients with those of a file

A step is forward, backward, clipping to norm 1 and AdamW; the first is not timed. Without PyTorch the program says so
and exits 0.
"""

import argparse
import json
import math
import mmap
import os
import re
import resource
import statistics
import struct
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    import torch.utils.checkpoint
except ImportError:
    print(json.dumps({"pytorch": None, "absent": "not installed"}) if "--json" in sys.argv[1:] else "PyTorch: not installed")
    sys.exit(0)

STRIDED = "column(stride=96), local(window=96), local(window=96), local(window=96)"


# ---- Files -----------------------------------------------------------------------------------------------------------

def read_safetensors(path):
    """Tensors by name, in memory that is the file's, and the metadata."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    meta = header.pop("__metadata__", {})

    def tensor(entry):
        dtype = {"F32": torch.float32, "F64": torch.float64}[entry["dtype"]]
        flat = torch.frombuffer(data, dtype=dtype, count=math.prod(entry["shape"]),
                                offset=8 + length + entry["data_offsets"][0])
        return flat.reshape(entry["shape"])
    return {name: tensor(entry) for name, entry in header.items()}, meta


def config_of(meta):
    config = {key: int(meta[key]) for key in ("n_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "d_qk", "d_ff")}
    config["d_qk"] = config["d_qk"] or config["d_model"]
    config["d_ff"] = config["d_ff"] or 4 * config["d_model"]
    config["dropout"] = float(meta["dropout"])
    config["position_extents"] = [int(extent) for extent in meta["position_extents"].split(",")]
    config["attention"] = meta["attention"]
    return config


# ---- Attention patterns as boolean masks -----------------------------------------------------------------------------

def parse_pattern(text):
    """Name and fields of one pattern."""
    name, fields = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text).groups()
    return name, {key.strip(): int(value) for key, value in
                  (field.split("=") for field in (fields or "").split(",") if field)}


def pattern_mask(text, head, n):
    """[n, n], true where query i attends to key j."""
    return allows(*parse_pattern(text), head, torch.arange(n)[:, None], torch.arange(n)[None, :])


def allows(name, f, head, i, j):
    """Whether query i attends to key j in this head; all may be tensors."""
    if name == "dense":
        allowed = j >= 0
    elif name == "local":
        allowed = i - j < f["window"]
    elif name == "column":
        allowed = (i - j) % f["stride"] == 0
    elif name == "fixed_block":
        allowed = (i - i % f["stride"]) <= j
    elif name == "fixed_summary":
        end = f["stride"] - head % f.get("sub_blocks", 1) * f["c"]
        allowed = (j % f["stride"] >= end - f["c"]) & (j % f["stride"] < end)
    else:
        raise SystemExit(f"train_step.py: unknown attention pattern '{name}'")
    return allowed & (j <= i)


def split_layers(attention, n_layers):
    """The text of each layer's pattern."""
    cycle = [text.strip() for text in re.split(r",(?![^(]*\))", attention)]
    return [cycle[k % len(cycle)] for k in range(n_layers)]


def layer_masks(attention, n_layers, n_heads, n):
    """One mask [1 or n_heads, n, n] a layer, or None for causal attention; equal layers share it."""
    layers = split_layers(attention, n_layers)

    def mask(text):
        splits = text.split("|")
        union = [[pattern_mask(part, h, n) for part in splits[h % len(splits)].split("+")] for h in
                 range(1 if len(splits) == 1 and "sub_blocks" not in text else n_heads)]
        return torch.stack([torch.stack(parts).any(0) for parts in union])
    masks = {text: None if text == "dense" else mask(text) for text in set(layers)}
    return [masks[text] for text in layers]


KERNELS = {"sdpa": "scaled_dot_product_attention", "products": "softmax between two products"}


class MaskedAttention:
    """softmax(q k^T / sqrt(d_qk)) v over the keys of a mask; 0 for queries without keys."""

    kernel = "sdpa"

    def __init__(self, mask, n):
        self.causal = mask is None
        allowed = torch.ones(1, n, n, dtype=torch.bool).tril() if mask is None else mask
        # Softmax over nothing is not a number: a query without keys sees itself, then its output is set to 0.
        self.no_keys = ~allowed.any(-1)
        if self.no_keys.any():
            allowed = allowed | torch.diag_embed(self.no_keys)
        else:
            self.no_keys = None
        # Added to the scores: PyTorch is a tenth faster with that than with a boolean mask.
        self.mask = torch.zeros(1, *allowed.shape).masked_fill_(~allowed, -math.inf)

    def __call__(self, q, k, v):  # [batch, n_heads, n, width]
        if self.kernel == "sdpa":
            mask = None if self.causal else self.mask
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        else:
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
            o = scores.add_(self.mask).softmax(-1) @ v
        return o if self.no_keys is None else o.masked_fill(self.no_keys[..., None], 0)


# ---- The model; parameters have the names of our checkpoints, and are rounded to the dtype of the activations ---------

class Norm(torch.nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.gain, self.bias, self.eps = torch.nn.Parameter(torch.ones(d)), torch.nn.Parameter(torch.zeros(d)), eps

    def forward(self, x):
        return F.layer_norm(x, self.gain.shape, self.gain.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Linear(torch.nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def linear(d_in, d_out, bias=True, std=None):
    layer = Linear(d_in, d_out, bias=bias)
    torch.nn.init.normal_(layer.weight, std=math.sqrt(0.125 / d_in) if std is None else std)
    if bias:
        torch.nn.init.zeros_(layer.bias)
    return layer


class Embedding(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        d, extents = config["d_model"], config["position_extents"]
        self.token = torch.nn.Parameter(0.01 * torch.randn(config["n_vocab"], d))
        self.position = torch.nn.ParameterList(torch.nn.Parameter(0.01 * torch.randn(extent, d)) for extent in extents)
        self.start = torch.nn.Parameter(0.01 * torch.randn(d))
        t, coordinates = torch.arange(config["n_ctx"]), []
        for extent in reversed(extents):  # the last coordinate is the fastest
            coordinates.insert(0, t % extent)
            t = t // extent
        self.register_buffer("coordinates", torch.stack(coordinates), persistent=False)

    def forward(self, tokens):  # shifted right behind the start vector
        h = F.embedding(tokens, self.token)
        for table, coordinate in zip(self.position, self.coordinates):
            h = h + F.embedding(coordinate, table)
        return torch.cat([self.start.expand(len(h), 1, -1), h[:, :-1]], 1)


class Block(torch.nn.Module):
    def __init__(self, config, attend):
        super().__init__()
        d, d_qk, d_ff, depth = config["d_model"], config["d_qk"], config["d_ff"], 2 * config["n_layers"]
        self.norm_a, self.norm_b = Norm(d, 1e-5), Norm(d, 1e-5)
        self.attention = torch.nn.ModuleDict({"q": linear(d, d_qk), "k": linear(d, d_qk), "v": linear(d, d),
                                              "out": linear(d, d, std=math.sqrt(0.125 / d / depth))})
        self.ff = torch.nn.ModuleDict({"in": linear(d, d_ff),
                                       "out": linear(d_ff, d, std=math.sqrt(0.125 / d_ff / depth))})
        self.attend = attend
        self.n_heads, self.dropout = config["n_heads"], config["dropout"]

    def forward(self, h):  # h + a + b
        x = self.norm_a(h)
        q, k, v = (self.attention[name](x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for name in "qkv")
        o = self.attend(q, k, v).transpose(1, 2).flatten(2)
        a = F.dropout(self.attention["out"](o), self.dropout, self.training)
        u = self.ff["in"](self.norm_b(h + a))
        b = F.dropout(self.ff["out"](u * torch.sigmoid(1.702 * u)), self.dropout, self.training)
        return h + a + b


class SparseTransformer(torch.nn.Module):
    """`attends` are the functions of q, k, v of the layers, dense under masks unless given; activations are of `dtype`."""

    def __init__(self, config, recompute, attends=None, dtype=None):
        super().__init__()
        self.recompute, self.dtype = recompute, dtype
        self.embedding = Embedding(config)
        attends = attends or [MaskedAttention(mask, config["n_ctx"]) for mask in layer_masks(
            config["attention"], config["n_layers"], config["n_heads"], config["n_ctx"])]
        self.blocks = torch.nn.ModuleList(Block(config, attend) for attend in attends)
        self.norm = Norm(config["d_model"], 1e-6)
        self.logits = linear(config["d_model"], config["n_vocab"], bias=False, std=0)

    def forward(self, tokens):
        h = self.embedding(tokens)
        if self.dtype:
            h = h.to(self.dtype)
        for block in self.blocks:
            h = torch.utils.checkpoint.checkpoint(block, h, use_reentrant=False) if self.recompute else block(h)
        return self.logits(self.norm(h))


def loss_of(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), tokens.flatten())


# ---- What is measured ------------------------------------------------------------------------------------------------

def largest_difference(model, tokens, expected):
    """Of loss, logits and gradients against a file's: relative to the tensor's largest element, at least 1e-3."""
    logits = model(tokens)
    loss = loss_of(logits, tokens)
    loss.backward()
    got = {"loss": loss, "logits": logits, **{f"grad.{name}": p.grad for name, p in model.named_parameters()}}
    model.zero_grad(set_to_none=True)
    if got.keys() != expected.keys():
        raise SystemExit(f"train_step.py: the tensors of --expected differ: {sorted(got.keys() ^ expected.keys())}")

    def difference(name):
        return float((got[name].detach().double() - expected[name]).abs().max() / max(expected[name].abs().max(), 1e-3))
    return max((difference(name), name) for name in expected)


def time_steps(model, tokens, steps):
    """Seconds of each of `steps` training steps, after one that is not timed."""
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
              {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
    try:
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)  # the fastest where the version has it for the CPU
    except (RuntimeError, TypeError):
        optimizer = torch.optim.AdamW(groups, lr=1e-4)
    model.train()
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(tokens), tokens).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
    return times[1:]


def blas():
    """The library that multiplies f32 matrices: MKL inside PyTorch, or what the system's libblas.so.3 stands for."""
    if torch.backends.mkl.is_available():
        return "MKL"
    with open("/proc/self/maps") as maps:
        folders = {os.path.basename(os.path.dirname(line.split()[-1])) for line in maps if "/libblas.so" in line}
    if not folders:
        return "a BLAS of its own"
    return "reference BLAS" if "blas" in folders else min(folders)


def parse_arguments():
    parser = argparse.ArgumentParser(description="The same model trained by PyTorch on the CPU.")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-ctx", type=int, default=3072)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--attention", default=STRIDED, help="pattern as in a configuration (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps; 0: only the loss (default: 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", choices=["f32", "f64", "bf16"], default="f32", help="of activations; beside bf16 weights are f32")
    parser.add_argument("--kernel", choices=KERNELS, help="of attention (default: sdpa where the version has it)")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--checkpoint", action="store_true", help="recompute every block in backward")
    parser.add_argument("--weights", help="model.safetensors, which also says the shape of the model")
    parser.add_argument("--tokens", help="raw bytes, [batch, n_ctx]; default: random ones")
    parser.add_argument("--expected", help="safetensors with loss, logits and gradients to compare with")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    args = parser.parse_args()
    has_sdpa = hasattr(F, "scaled_dot_product_attention")
    if args.kernel == "sdpa" and not has_sdpa or args.compile and not hasattr(torch, "compile"):
        stop(args, f"PyTorch {torch.__version__} has no {'torch.compile' if args.compile else KERNELS['sdpa']}")
    args.kernel = args.kernel or ("sdpa" if has_sdpa else "products")
    return args


def stop(args, reason):
    """Says why there is no measurement, which is no error."""
    print(json.dumps({"pytorch": torch.__version__, "absent": reason}) if args.json else f"PyTorch: {reason}")
    sys.exit(0)


def main():
    args = parse_arguments()
    MaskedAttention.kernel = args.kernel
    torch.set_default_dtype(torch.float64 if args.dtype == "f64" else torch.float32)
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.weights:
        weights, meta = read_safetensors(args.weights)
        config = config_of(meta)
    else:
        extents = [32, 32, 3] if args.n_ctx == 3072 else [-(-args.n_ctx // 96), 96]
        config = dict(n_vocab=256, n_ctx=args.n_ctx, d_model=args.d_model, n_layers=args.layers, n_heads=args.heads,
                      d_qk=args.d_model, d_ff=4 * args.d_model, dropout=0.0, position_extents=extents,
                      attention=args.attention)
    model = SparseTransformer(config, args.checkpoint, dtype=torch.bfloat16 if args.dtype == "bf16" else None)
    if args.weights:
        model.load_state_dict(weights)  # every name and shape must agree

    if args.tokens:
        with open(args.tokens, "rb") as file:
            tokens = torch.tensor(list(file.read())).reshape(-1, config["n_ctx"])
    else:
        tokens = torch.randint(config["n_vocab"], (args.batch, config["n_ctx"]))

    model.eval()
    with torch.no_grad():
        loss_nats = float(loss_of(model(tokens), tokens))
    if blas() == "reference BLAS":
        print("train_step.py: PyTorch runs on the unoptimized reference BLAS, which makes it an unfair rival; "
              "apt-get install libopenblas0-pthread", file=sys.stderr)
    what = KERNELS[args.kernel] + (", compiled" if args.compile else "")
    result = {"pytorch": torch.__version__, "blas": blas(), "attention_kernel": what,
              "threads": args.threads, "dtype": args.dtype, "recompute": args.checkpoint, "batch": len(tokens),
              "parameters": sum(p.numel() for p in model.parameters()), **config, "loss_nats": loss_nats}
    lines = [f"PyTorch {torch.__version__}, {blas()}, {what}, {args.threads} threads, {args.dtype}: "
             f"d = {config['d_model']}, {config['n_layers']} layers, {config['n_heads']} heads, "
             f"n = {config['n_ctx']}, batch {len(tokens)}, {config['attention']}"
             + (", recompute" if args.checkpoint else ""),
             f"loss           {loss_nats:.12g} nats"]
    good = True
    if args.expected:
        worst, name = largest_difference(model, tokens, read_safetensors(args.expected)[0])
        good = worst <= {"f64": 1e-9, "f32": 1e-4, "bf16": 0.1}[args.dtype]
        result["difference"] = worst
        lines.append(f"difference     {worst:.1e} in {name}{'' if good else '  TOO LARGE'}")
    if args.steps > 0:
        try:
            times = time_steps(torch.compile(model) if args.compile else model, tokens, args.steps)
        except Exception as error:
            if not args.compile:
                raise
            stop(args, f"torch.compile failed: {(str(error) or repr(error)).splitlines()[0]}")
        best_s, median_s = min(times), statistics.median(times)
        result.update(tokens=tokens.numel(), steps=len(times), best_ms=best_s * 1e3, median_ms=median_s * 1e3,
                      tokens_per_s=tokens.numel() / best_s, median_tokens_per_s=tokens.numel() / median_s)
        lines += [f"step           {best_s * 1e3:.1f} ms best, {median_s * 1e3:.1f} ms median of {len(times)}",
                  f"tokens/s       {tokens.numel() / best_s:.0f} best, {tokens.numel() / median_s:.0f} median"]
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines.append(f"peak memory    {result['peak_rss_bytes'] / 2**20:.0f} MiB resident, the whole process")
    print(json.dumps(result) if args.json else "\n".join(lines))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
