#!/usr/bin/env python3
"""Writes the golden files of this folder: small models, and what they must compute.

    make_golden.py            write every case, and SHA256SUMS
    make_golden.py --check    write nothing: compare every gradient with finite differences, and the files with those
                              that would be written; exits 1 when a weight or token differs, or a result by more
                              than 1e-15 of the largest number of its tensor

An implementation of the Sparse Transformer that shares nothing with the C++ one: plain formulas of the paper with
hand-written gradients, attention as dense matrices under a mask, masks as sets of keys. It needs only NumPy. Sums are
made in long double (64-bit mantissa on x86-64; without BLAS or SIMD) and rounded once to float64; random numbers come
from SHA-256. So weights and tokens are the same bytes everywhere, whatever the version of NumPy or the BLAS, and so are
nearly all results: the exponential on x87 has other last bits on AMD than on Intel, and may round otherwise.
"""

import argparse
import hashlib
import json
import pathlib
import sys

import numpy as np

real = np.longdouble
FOLDER = pathlib.Path(__file__).resolve().parent


# ---- Patterns, Sec. 4.2: how a configuration writes one, and the keys of query i in head h ---------------------------

def dense():
    return "dense", lambda i, h: set(range(i + 1))


def local(window):
    return f"local(window={window})", lambda i, h: set(range(max(0, i - window + 1), i + 1))


def column(stride):
    return f"column(stride={stride})", lambda i, h: set(range(i, -1, -stride))


def fixed_block(stride):
    return f"fixed_block(stride={stride})", lambda i, h: set(range(i // stride * stride, i + 1))


def fixed_summary(stride, c, sub_blocks=1):
    def keys(i, h):  # of every block, the c columns of sub-block h mod sub_blocks, counted from the block's end
        ends = (start + stride - h % sub_blocks * c for start in range(0, i + 1, stride))
        return {j for end in ends for j in range(end - c, end) if j <= i}
    return f"fixed_summary(stride={stride}, c={c}, sub_blocks={sub_blocks})", keys


def merged(*patterns):
    """One softmax over the union (eq. 6)."""
    return (" + ".join(text for text, _ in patterns),
            lambda i, h: set().union(*(keys(i, h) for _, keys in patterns)))


def split(*patterns):
    """Head h takes pattern h mod their number (eq. 7, 8)."""
    return (" | ".join(text for text, _ in patterns),
            lambda i, h: patterns[h % len(patterns)][1](i, h))


def mask_of(pattern, n_heads, n):
    mask = np.zeros((n_heads, n, n), bool)
    for h in range(n_heads):
        for i in range(n):
            mask[h, i, sorted(pattern[1](i, h))] = True
    return mask


# ---- Cases. `layers` interleaves: layer k takes layers[k mod their number] (eq. 5) -----------------------------------

def case(name, layers, n_ctx, extents, d_model=16, n_layers=2, n_heads=2, d_qk=16, d_ff=32, n_vocab=32, batch=2):
    return dict(name=name, layers=layers, n_ctx=n_ctx, extents=extents, d_model=d_model, n_layers=n_layers,
                n_heads=n_heads, d_qk=d_qk, d_ff=d_ff, n_vocab=n_vocab, batch=batch)


CASES = [
    case("dense", [dense()], n_ctx=36, extents=[4, 3, 3], d_ff=64, n_vocab=256),
    case("strided-merged", [merged(local(6), column(6))], n_ctx=36, extents=[6, 6]),
    case("strided-split", [split(local(6), column(6))], n_ctx=36, extents=[6, 6], n_heads=4),
    # The window of the paper's formula, stride + 1; the third layer begins the cycle again.
    case("strided-interleaved", [column(6), local(7)], n_ctx=36, extents=[6, 6], n_layers=3),
    case("fixed-merged", [merged(fixed_block(8), fixed_summary(8, 2))], n_ctx=32, extents=[4, 8]),
    # The first six queries of the summary have no keys.
    case("fixed-split", [split(fixed_block(8), fixed_summary(8, 2))], n_ctx=32, extents=[4, 8]),
    case("fixed-interleaved", [fixed_block(8), fixed_summary(8, 2)], n_ctx=32, extents=[4, 8], n_layers=3),
    # Heads with distinct sub-blocks, half-size q, k and ff, a last block cut short.
    case("fixed-merged-sub-blocks", [merged(fixed_block(8), fixed_summary(8, 2, 4))], n_ctx=29, extents=[4, 8],
         n_heads=4, d_qk=8),
    case("fixed-split-sub-blocks", [split(fixed_block(8), fixed_summary(8, 2, 4))], n_ctx=29, extents=[4, 8],
         n_heads=4, d_qk=8),
    # Everything at once, at awkward sizes: odd widths, a batch of three, a sequence shorter than its position tables.
    case("mixed-ragged", [split(merged(local(5), column(7)), fixed_block(9), fixed_summary(9, 2, 3)),
                          merged(local(4), column(6)), dense()],
         n_ctx=31, extents=[2, 3, 7], d_model=18, n_layers=4, n_heads=3, d_qk=9, d_ff=27, n_vocab=29, batch=3),
]


def metadata(c):
    """The configuration as a weights file carries it."""
    return {
        "attention": ", ".join(text for text, _ in c["layers"]),
        "d_ff": str(c["d_ff"]), "d_model": str(c["d_model"]), "d_qk": str(c["d_qk"]), "dropout": "0",
        "init": "released_code", "n_ctx": str(c["n_ctx"]), "n_heads": str(c["n_heads"]),
        "n_layers": str(c["n_layers"]), "n_vocab": str(c["n_vocab"]),
        "position_extents": ",".join(map(str, c["extents"])), "recompute": "false",
    }


def random_words(label, count):
    """`count` 32-bit words that depend on `label` alone."""
    data = b"".join(hashlib.sha256(f"{label}:{i}".encode()).digest() for i in range((count + 7) // 8))
    return np.frombuffer(data, "<u4")[:count]


def uniform(label, shape):
    """Uniform in (-1, 1), multiples of 2^-20: exact in f32."""
    words = random_words(label, int(np.prod(shape))) >> np.uint32(12)
    return ((words.astype(np.float64) - 2**19 + 0.5) / 2**19).reshape(shape)


def make_weights(c):
    """Every tensor of the model, f32. None is zero or one, logits included, so that every gradient is exercised."""
    d, shapes = c["d_model"], {}
    shapes["embedding.token"] = (c["n_vocab"], d)
    for p, extent in enumerate(c["extents"]):
        shapes[f"embedding.position.{p}"] = (extent, d)
    shapes["embedding.start"] = (d,)
    for k in range(c["n_layers"]):
        block = f"blocks.{k}."
        for norm in ("norm_a", "norm_b"):
            shapes[f"{block}{norm}.gain"] = shapes[f"{block}{norm}.bias"] = (d,)
        for name, d_out, d_in in (("attention.q", c["d_qk"], d), ("attention.k", c["d_qk"], d), ("attention.v", d, d),
                                  ("attention.out", d, d), ("ff.in", c["d_ff"], d), ("ff.out", d, c["d_ff"])):
            shapes[f"{block}{name}.weight"] = (d_out, d_in)
            shapes[f"{block}{name}.bias"] = (d_out,)
    shapes["norm.gain"] = shapes["norm.bias"] = (d,)
    shapes["logits.weight"] = (c["n_vocab"], d)

    def values(name, shape):
        u = uniform(f"{c['name']}/{name}", shape)
        if name.startswith("embedding."):
            return u
        if name.endswith(".weight"):
            return u * (3.0 / shape[1]) ** 0.5  # variance 1 / d_in
        return 1.0 + 0.5 * u if name.endswith(".gain") else 0.5 * u

    return {name: values(name, shape).astype(np.float32) for name, shape in shapes.items()}


def make_tokens(c):
    words = random_words(f"{c['name']}/tokens", c["batch"] * c["n_ctx"])
    return (words % np.uint32(c["n_vocab"])).astype(np.uint8).reshape(c["batch"], c["n_ctx"])


# ---- Functions: each returns its value, and a function from the gradient in the value to those in its arguments ------

def linear(x, weight, bias=None):
    y = x @ weight.T if bias is None else x @ weight.T + bias

    def backward(dy):
        dy_rows, x_rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        return dy @ weight, dy_rows.T @ x_rows, dy_rows.sum(0)
    return y, backward


def layer_norm(x, gain, bias, eps):
    centered = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centered * centered).mean(-1, keepdims=True) + eps)
    z = centered / std

    def backward(dy):
        dz = dy * gain
        dx = (dz - dz.mean(-1, keepdims=True) - z * (dz * z).mean(-1, keepdims=True)) / std
        rows = (-1, x.shape[-1])
        return dx, (dy * z).reshape(rows).sum(0), dy.reshape(rows).sum(0)
    return z * gain + bias, backward


def gelu(x):  # x sigmoid(1.702 x)
    s = 1 / (1 + np.exp(-1.702 * x))
    return x * s, lambda dy: dy * (s + 1.702 * x * s * (1 - s))


def attention(q, k, v, mask):
    """Softmax over the keys that mask [n_heads, n, n] allows; a query without keys gives 0."""
    n_heads = mask.shape[0]

    def split_heads(x):  # [batch, n, n_heads * width] -> [batch, n_heads, n, width]
        return x.reshape(x.shape[0], x.shape[1], n_heads, -1).transpose(0, 2, 1, 3)

    def join_heads(x):
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)

    q, k, v = split_heads(q), split_heads(k), split_heads(v)
    scale = 1 / np.sqrt(real(q.shape[-1]))
    scores = np.where(mask, q @ k.swapaxes(-1, -2) * scale, -np.inf)
    largest = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isinf(largest), 0, largest))
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)

    def backward(do):
        do = split_heads(do)
        dp = do @ v.swapaxes(-1, -2)
        ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
        return join_heads(ds @ k), join_heads(ds.swapaxes(-1, -2) @ q), join_heads(p.swapaxes(-1, -2) @ do)
    return join_heads(p @ v), backward


def embedding(tokens, token, position, start):
    """Token and position vectors, then shifted right by one behind the start vector (Sec. 5.3, eq. 15)."""
    batch, n = tokens.shape
    digits = []  # the coordinates of every position, the last one fastest
    rest = np.arange(n)
    for table in reversed(position):
        rest, digit = rest // len(table), rest % len(table)
        digits.insert(0, digit)
    placed = token[tokens] + sum(table[digit] for table, digit in zip(position, digits))
    h = np.concatenate([np.broadcast_to(start, (batch, 1, len(start))), placed[:, :-1]], axis=1)

    def backward(dh):
        dtoken, dposition = np.zeros_like(token), [np.zeros_like(table) for table in position]
        for b in range(batch):
            for t in range(n - 1):
                dtoken[tokens[b, t]] += dh[b, t + 1]
                for dtable, digit in zip(dposition, digits):
                    dtable[digit[t]] += dh[b, t + 1]
        return dtoken, dposition, dh[:, 0].sum(0)
    return h, backward


def cross_entropy(logits, targets):
    """Mean of log sum exp(z) - z[target], in nats."""
    largest = logits.max(-1, keepdims=True)
    lse = largest + np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    picked = np.take_along_axis(logits, targets[..., None].astype(np.int64), -1)

    def backward():
        dlogits = np.exp(logits - lse)
        np.put_along_axis(dlogits, targets[..., None].astype(np.int64),
                          np.take_along_axis(dlogits, targets[..., None].astype(np.int64), -1) - 1, -1)
        return dlogits / targets.size
    return (lse - picked).mean(), backward


# ---- The model, Sec. 5.2 ---------------------------------------------------------------------------------------------

def run_model(c, w, tokens, want_gradients=True):
    """Loss, logits and the gradient of the loss in every weight."""
    gradients = {}

    def keep(name, dweight, dbias):
        gradients[name + ".weight"], gradients[name + ".bias"] = dweight, dbias

    def keep_norm(name, dgain, dbias):
        gradients[name + ".gain"], gradients[name + ".bias"] = dgain, dbias

    def linear_of(x, name):
        return linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm_of(x, name, eps):
        return layer_norm(x, w[name + ".gain"], w[name + ".bias"], eps)

    def block(h, k):  # h + a + b
        name, mask = f"blocks.{k}.", mask_of(c["layers"][k % len(c["layers"])], c["n_heads"], c["n_ctx"])
        x, norm_a_back = norm_of(h, name + "norm_a", 1e-5)
        q, q_back = linear_of(x, name + "attention.q")
        key, k_back = linear_of(x, name + "attention.k")
        v, v_back = linear_of(x, name + "attention.v")
        o, attention_back = attention(q, key, v, mask)
        a, out_back = linear_of(o, name + "attention.out")
        y, norm_b_back = norm_of(h + a, name + "norm_b", 1e-5)
        u, ff_in_back = linear_of(y, name + "ff.in")
        f, gelu_back = gelu(u)
        b, ff_out_back = linear_of(f, name + "ff.out")

        def backward(dnext):
            df, *dff_out = ff_out_back(dnext)
            dy, *dff_in = ff_in_back(gelu_back(df))
            dsum, *dnorm_b = norm_b_back(dy)
            da = dnext + dsum
            do, *dout = out_back(da)
            dq, dk, dv = attention_back(do)
            dx = 0
            for part, part_back, dpart in (("q", q_back, dq), ("k", k_back, dk), ("v", v_back, dv)):
                dx_part, *dlinear = part_back(dpart)
                keep(f"{name}attention.{part}", *dlinear)
                dx = dx + dx_part
            dh, *dnorm_a = norm_a_back(dx)
            keep(name + "attention.out", *dout)
            keep(name + "ff.in", *dff_in)
            keep(name + "ff.out", *dff_out)
            keep_norm(name + "norm_a", *dnorm_a)
            keep_norm(name + "norm_b", *dnorm_b)
            return da + dh
        return h + a + b, backward

    position = [w[f"embedding.position.{p}"] for p in range(len(c["extents"]))]
    h, embedding_back = embedding(tokens, w["embedding.token"], position, w["embedding.start"])
    block_backs = []
    for k in range(c["n_layers"]):
        h, back = block(h, k)
        block_backs.append(back)
    y, norm_back = norm_of(h, "norm", 1e-6)
    logits, logits_back = linear(y, w["logits.weight"])
    loss, loss_back = cross_entropy(logits, tokens)
    if not want_gradients:
        return loss

    dy, gradients["logits.weight"], _ = logits_back(loss_back())
    dh, *dnorm = norm_back(dy)
    keep_norm("norm", *dnorm)
    for back in reversed(block_backs):
        dh = back(dh)
    gradients["embedding.token"], dposition, gradients["embedding.start"] = embedding_back(dh)
    for p, dtable in enumerate(dposition):
        gradients[f"embedding.position.{p}"] = dtable
    return loss, logits, gradients


# ---- Files -----------------------------------------------------------------------------------------------------------

def safetensors(tensors, meta=None):
    """The bytes of a safetensors file; all tensors F32 or all F64."""
    header, data = ({"__metadata__": meta} if meta else {}), b""
    for name in sorted(tensors):
        t = tensors[name]
        payload = t.astype(t.dtype.newbyteorder("<")).tobytes()
        header[name] = {"dtype": {4: "F32", 8: "F64"}[t.itemsize], "shape": list(t.shape),
                        "data_offsets": [len(data), len(data) + len(payload)]}
        data += payload
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def same_results(ours, theirs):
    """Whether two expected.safetensors have the same tensors but for the rounding."""
    def read(data):
        end = 8 + int.from_bytes(data[:8], "little")
        return json.loads(data[8:end]), {name: np.frombuffer(data[end:][slice(*t["data_offsets"])], "<f8")
                                         for name, t in json.loads(data[8:end]).items()}

    (header, a), (other_header, b) = read(ours), read(theirs)
    return header == other_header and all(
        np.abs(a[name] - b[name]).max() <= 1e-15 * max(np.abs(a[name]).max(), 1e-3) for name in a)


def as_real(weights):
    return {name: t.astype(real) for name, t in weights.items()}


def make_files(c):
    """Path below this folder -> bytes."""
    weights, tokens = make_weights(c), make_tokens(c)
    loss, logits, gradients = run_model(c, as_real(weights), tokens)
    assert gradients.keys() == weights.keys() and all(gradients[k].shape == weights[k].shape for k in weights)
    expected = {"loss": np.float64(loss).reshape(()), "logits": logits.astype(np.float64)}
    expected.update({"grad." + name: g.astype(np.float64) for name, g in gradients.items()})
    return {f"{c['name']}/model.safetensors": safetensors(weights, metadata(c)),
            f"{c['name']}/tokens.bin": tokens.tobytes(),
            f"{c['name']}/expected.safetensors": safetensors(expected)}


def all_files():
    files = {path: data for c in CASES for path, data in make_files(c).items()}
    files["make_golden.py"] = pathlib.Path(__file__).read_bytes()
    sums = [f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(files.items())]
    del files["make_golden.py"]
    files["SHA256SUMS"] = "".join(sums).encode()
    return files


def largest_gradient_error(c):
    """Of every weight: the slope of the loss along a random direction, by central differences and by the gradient.
    The largest difference, relative to the norm of the gradient."""
    weights, tokens = as_real(make_weights(c)), make_tokens(c)
    _, _, gradients = run_model(c, weights, tokens)
    worst, step = 0.0, 2.0**-20
    for name in weights:
        direction = uniform(f"{c['name']}/direction/{name}", weights[name].shape).astype(real)
        losses = [run_model(c, {**weights, name: weights[name] + sign * step * direction}, tokens, False)
                  for sign in (1, -1)]
        slope = (losses[0] - losses[1]) / (2 * step)
        size = max(np.sqrt((gradients[name] ** 2).sum()), 1e-3)  # 1e-3: the gradient of a key bias is 0
        worst = max(worst, float(abs(slope - (gradients[name] * direction).sum()) / size))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="check gradients and files instead of writing")
    check = parser.parse_args().check
    if np.finfo(real).nmant < 63:
        sys.exit("make_golden.py: needs a long double of at least 64 mantissa bits, as on x86-64 or arm64 Linux")
    good = True
    if check:
        for c in CASES:
            error = largest_gradient_error(c)
            good = good and error < 1e-9
            print(f"{c['name']:<24} largest gradient error {error:.1e}{'' if error < 1e-9 else '  WRONG'}", flush=True)
    for path, data in all_files().items():
        target = FOLDER / path
        if check:
            there = target.read_bytes() if target.is_file() else b""
            rounding = target.name == "expected.safetensors" and there and same_results(data, there)
            if there != data and not rounding and path != "SHA256SUMS":
                good = False
                print(f"{path} differs from what this script makes")
        else:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
