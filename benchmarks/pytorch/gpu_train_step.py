#!/usr/bin/env python3
"""The rival on a GPU: a model of ours in PyTorch, bf16 with f32 weights, compiled, the whole step one CUDA graph.

    gpu_train_step.py --way permuted --weights model.safetensors --tokens tokens.bin    # of train_step_benchmark --weights

Its attention computes no masked-out tiles, in one of two ways:

    natural   FlexAttention under the pattern's block mask, in the order of the tokens
    permuted  what an expert would write: columns and blocks as batches of short causal sequences through
              scaled_dot_product_attention, summaries gathered into a short list of keys; copies are part of the time

Dense attention is scaled_dot_product_attention in both, with the first of cuDNN, FlashAttention and the memory-efficient
kernel that can compute it. Prints the loss of the weights, with --logits how far its logits are from ours, then the time
of a step: forward, backward, clipping to norm 1 and fused AdamW. Blocks are kept for backward, or recomputed if memory
does not do. --device cpu --eager computes the same in small, for checking with --expected (tests/golden). Exits 1 with
the reason when something cannot be done.
"""

import argparse
import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

import train_step
from train_step import allows, largest_difference, loss_of, parse_pattern, split_layers

BACKENDS = {SDPBackend.CUDNN_ATTENTION: "cuDNN", SDPBackend.FLASH_ATTENTION: "FlashAttention",
            SDPBackend.EFFICIENT_ATTENTION: "memory-efficient kernel", SDPBackend.MATH: "two products"}


# ---- Attention; q, k, v [batch, n_heads, n, width], a pattern as [[(name, fields), ...] of each split] ----------------

class Flex:
    """FlexAttention under a mask; keys come from `choose`, by default all."""

    def __init__(self, mask, heads, n, keys, setup, choose=lambda x: x):
        self.choose, self.name = choose, "FlexAttention"
        if setup.eager:  # dense under the mask, for FlexAttention has no backward on a CPU
            self.name = "masked scaled_dot_product_attention"
            self.mask = create_mask(mask, 1, heads or 1, n, keys, device=setup.device)
            self.no_keys = ~self.mask.any(-1, keepdim=True)
        else:
            self.block_mask = create_block_mask(mask, None, heads, n, keys, device=setup.device)
            self.flex = torch.compile(flex_attention, dynamic=False)

    def __call__(self, q, k, v):
        k, v = self.choose(k), self.choose(v)
        if hasattr(self, "flex"):
            return self.flex(q, k, v, block_mask=self.block_mask)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask | self.no_keys)
        return o.masked_fill(self.no_keys, 0)


class Causal:
    """Causal attention within runs of `length` positions: those `step` apart for columns, neighbours for blocks."""

    def __init__(self, length=None, columns=False):
        self.length, self.columns, self.backend = length, columns, None
        self.name = "scaled_dot_product_attention" + (" of columns" if columns else " of blocks" if length else "")

    def split(self, x):
        batch, heads, n, width = x.shape
        if self.length is None:
            return x
        if self.columns:
            x = x.unflatten(2, (self.length, n // self.length)).permute(0, 3, 1, 2, 4)
        else:
            x = x.unflatten(2, (n // self.length, self.length)).permute(0, 2, 1, 3, 4)
        return x.reshape(-1, heads, self.length, width)

    def join(self, o, n):
        if self.length is None:
            return o
        o = o.unflatten(0, (-1, n // self.length))
        return (o.permute(0, 2, 3, 1, 4) if self.columns else o.permute(0, 2, 1, 3, 4)).flatten(2, 3)

    def __call__(self, q, k, v):
        q, k, v, n = self.split(q), self.split(k), self.split(v), q.shape[2]
        return self.join(F.scaled_dot_product_attention(q, k, v, is_causal=True), n)


def natural(splits, setup):
    if splits == [[("dense", {})]]:
        return Causal()

    def mask(b, h, i, j):
        allowed = i < 0
        for k, union in enumerate(splits):
            for name, fields in union:
                allowed = allowed | (h % len(splits) == k) & allows(name, fields, h, i, j)
        return allowed
    alike = len(splits) == 1 and not any(fields.get("sub_blocks", 1) > 1 for _, fields in splits[0])
    return Flex(mask, None if alike else setup.heads, setup.n, setup.n, setup)


def permuted(splits, setup):
    n, heads, names = setup.n, setup.heads, sorted(name for name, _ in splits[0])
    strides = {fields.get("stride") for _, fields in splits[0]}
    stride = strides.pop()
    if len(splits) > 1 or strides or not stride or n % stride:
        return natural(splits, setup)
    if names == ["column"]:
        return Causal(n // stride, columns=True)
    if names == ["fixed_block"]:
        return Causal(stride)
    if names not in (["fixed_summary"], ["fixed_block", "fixed_summary"]):
        return natural(splits, setup)

    # The summaries of all blocks, then for a merged pattern the keys of the own block.
    summary = dict(splits[0])["fixed_summary"]
    c, sub_blocks, merged = summary["c"], summary.get("sub_blocks", 1), "fixed_block" in names
    count = n // stride * c
    t = torch.arange(count, device=setup.device)
    first = stride - (torch.arange(heads, device=setup.device)[:, None] % sub_blocks + 1) * c
    positions = (t // c * stride + t % c + first)[None, :, :, None]  # [1, heads, count, 1]

    def choose(x):
        gathered = x.gather(2, positions.expand(len(x), -1, -1, x.shape[-1]))
        return torch.cat([gathered, x], 2) if merged else gathered

    def mask(b, h, i, j):
        position = j // c * stride + j % c + stride - (h % sub_blocks + 1) * c
        if not merged:
            return position <= i
        own = j - count
        return ((j < count) & (position // stride < i // stride)) | ((own // stride == i // stride) & (own >= 0) & (own <= i))
    flex = Flex(mask, heads, n, count + (n if merged else 0), setup, choose)
    flex.name += " of gathered summaries"
    return flex


class Setup:
    """What attention must know of the model and the machine."""

    def __init__(self, config, args):
        self.n, self.heads = config["n_ctx"], config["n_heads"]
        self.device, self.eager = args.device, args.eager


def attention_of(config, args):
    """The function of each layer; alike layers share it."""
    setup, make = Setup(config, args), {"natural": natural, "permuted": permuted}[args.way]
    layers = split_layers(config["attention"], config["n_layers"])
    made = {text: make([[parse_pattern(part) for part in split.split("+")] for split in text.split("|")], setup)
            for text in dict.fromkeys(layers)}
    return [made[text] for text in layers]


def choose_backend(attends, config, args, dtype):
    """Lets scaled_dot_product_attention use one kernel, the first that can compute what the model needs; its name."""
    causal = next((attend for attend in attends if isinstance(attend, Causal)), None)
    if causal is None or args.device == "cpu":
        return None
    d_qk, d = config["d_qk"] // config["n_heads"], config["d_model"] // config["n_heads"]
    q, k, v = (torch.randn(1, config["n_ctx"], config["n_heads"], width, device=args.device, dtype=dtype)
               .transpose(1, 2).requires_grad_() for width in (d_qk, d_qk, d))
    for backend, name in BACKENDS.items():
        try:
            with sdpa_kernel([backend]):
                causal(q, k, v).sum().backward()
        except RuntimeError:
            continue
        torch.backends.cuda.enable_cudnn_sdp(backend == SDPBackend.CUDNN_ATTENTION)
        torch.backends.cuda.enable_flash_sdp(backend == SDPBackend.FLASH_ATTENTION)
        torch.backends.cuda.enable_mem_efficient_sdp(backend == SDPBackend.EFFICIENT_ATTENTION)
        torch.backends.cuda.enable_math_sdp(backend == SDPBackend.MATH)
        return name
    raise SystemExit("gpu_train_step.py: scaled_dot_product_attention has no kernel for this model")


# ---- The step ---------------------------------------------------------------------------------------------------------

def make_step(model, tokens, args):
    """A training step; and how it runs."""
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
              {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
    on_gpu = args.device == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=1e-4, **({"fused": True, "capturable": True} if on_gpu else {}))
    model.train()

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(tokens), tokens).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    if not on_gpu:
        return step, "eager"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # for the memory of the graph
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay, "compiled, one CUDA graph"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"gpu_train_step.py: no CUDA graph: {error}", file=sys.stderr)
        return step, "compiled, without a CUDA graph"


def time_steps(step, steps, device):
    """Milliseconds of each step."""
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def measure(config, weights, tokens, args, dtype, recompute, result):
    attends = attention_of(config, args)
    backend = choose_backend(attends, config, args, dtype)
    names = dict.fromkeys(attend.name for attend in attends)
    result["attention_kernel"] = f"{args.way}: {', '.join(names)}" + (f" by {backend}" if backend else "")
    with torch.device(args.device):
        model = train_step.SparseTransformer(config, recompute, attends, dtype)
    model.load_state_dict(weights)  # every name and shape must agree
    model.eval()
    with torch.no_grad():
        losses = [float(loss_of(model(one), one)) for one in tokens.split(1)]
    result["loss_nats"] = statistics.fmean(losses)
    if args.logits:
        with torch.no_grad():
            ours, theirs = train_step.read_safetensors(args.logits)[0]["logits"], model(tokens[:1]).float().cpu()
        result["logits_difference"] = float((theirs - ours).square().mean().sqrt() / ours.square().mean().sqrt())
    if args.expected:
        difference, name = largest_difference(model, tokens, train_step.read_safetensors(args.expected)[0])
        result.update(difference=difference, difference_in=name)
    print(json.dumps(result), flush=True)
    if args.steps == 0:
        return
    if not args.eager:
        for block in model.blocks:
            block.compile(dynamic=False)
    step, how = make_step(model, tokens, args)
    times = time_steps(step, args.steps, args.device)
    result.update(recompute=recompute, how=how, steps=len(times), best_ms=min(times), median_ms=statistics.median(times))
    if args.device == "cuda":
        result["peak_tensor_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(result), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=["natural", "permuted"], required=True)
    parser.add_argument("--weights", required=True, help="model.safetensors, which also says the shape of the model")
    parser.add_argument("--tokens", required=True, help="raw bytes, [batch, n_ctx]")
    parser.add_argument("--steps", type=int, default=10, help="timed steps; 0: only the loss (default: 10)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bf16", "f32", "f64"], default="bf16", help="of activations")
    parser.add_argument("--eager", action="store_true", help="compile nothing, dense under masks")
    parser.add_argument("--logits", help="safetensors with ours of the first sequence, to compare with")
    parser.add_argument("--expected", help="safetensors with loss, logits and gradients to compare with")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_train_step.py: PyTorch sees no GPU")
    for name in ("recompile_limit", "cache_size_limit"):  # before PyTorch 2.6 it had the second name
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 64)
            break

    weights, meta = train_step.read_safetensors(args.weights)
    config = train_step.config_of(meta)
    with open(args.tokens, "rb") as file:
        tokens = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).long().reshape(-1, config["n_ctx"])
    tokens = tokens.to(args.device)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}[args.dtype]
    if args.dtype == "f64":
        torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    result = {"pytorch": torch.__version__, "way": args.way, "dtype": args.dtype, "batch": len(tokens),
              "tokens": tokens.numel(), "parameters": sum(math.prod(tensor.shape) for tensor in weights.values())}
    exhausted = False
    try:
        measure(config, weights, tokens, args, dtype, False, result)
    except torch.OutOfMemoryError:
        exhausted = True
    if exhausted:  # out here nothing of the first attempt is held any more
        torch.cuda.empty_cache()
        measure(config, weights, tokens, args, dtype, True, result)


if __name__ == "__main__":
    main()
