#!/usr/bin/env python3
"""PyTorch's attention kernels on the CPU under our patterns; attention_benchmark runs this beside its own times.

    attention.py --n 3072 --pattern dense --pattern 'local(window=96) + column(stride=96)'

One line for each time: pattern, kernel, pass, best ms, median ms, between tabs. The kernels are
scaled_dot_product_attention, causal or with the pattern as a boolean mask, and flex_attention, compiled, with the pattern
as a block mask; where a version has one of them, or its backward, not, that line is missing. Exits 1 without PyTorch.
"""

import argparse
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from train_step import layer_masks
except ImportError:
    sys.exit(1)


def time_runs(run, seconds):
    run()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - begin))
    times.sort()
    return times[0], times[len(times) // 2]


def report(pattern, kernel, attention, tensors, d_o, seconds):
    """`attention` of q, k, v, forward and then with backward."""
    inputs = [x.detach() for x in tensors]

    def forward():
        with torch.no_grad():
            attention(*inputs)

    def both():
        torch.autograd.grad(attention(*tensors), tensors, d_o)
    for name, run in (("fwd", forward), ("fwd+bwd", both)):
        try:
            best, median = time_runs(run, seconds)
        except Exception as error:  # of PyTorch's compiler or of a kernel that is not there: the rival is absent
            print(f"{kernel}, {name}: {error}", file=sys.stderr)
            return
        print(f"{pattern}\t{kernel}\t{name}\t{best:.4f}\t{median:.4f}", flush=True)


def flex_attention_under(mask, n):
    """flex_attention with a mask [n, n], or None where this version has none."""
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError:
        return None
    block_mask = create_block_mask(lambda b, h, i, j: mask[i, j], None, None, n, n, device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=block_mask)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    parser.add_argument("--pattern", action="append", required=True, help="of one layer, alike in all heads")
    args = parser.parse_args()

    torch.manual_seed(1)
    # As ours: [batch, n, heads * width], seen as [batch, heads, n, width].
    leaves = [torch.rand(1, args.n, args.heads, args.width).mul_(2).sub_(1) for _ in range(4)]
    *tensors, d_o = [x.transpose(1, 2) for x in leaves]
    for x in tensors:
        x.requires_grad_(True)
    for pattern in args.pattern:
        (mask,) = layer_masks(pattern, 1, args.heads, args.n)
        if mask is not None:
            mask = mask[0]
        report(pattern, "sdpa", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask,
                                                                             is_causal=mask is None),
               tensors, d_o, args.seconds)
        if mask is None:
            mask = torch.ones(args.n, args.n, dtype=torch.bool).tril()
        try:
            flex = flex_attention_under(mask, args.n)
        except Exception as error:
            print(f"flex_attention: {error}", file=sys.stderr)
            flex = None
        if flex is not None:
            report(pattern, "flex", flex, tensors, d_o, args.seconds)


if __name__ == "__main__":
    main()
