#!/usr/bin/env python3
"""Checks every dumped integer layer against an independent numpy evaluation, bit for bit.

    python3 scripts/layers.py DUMP.npz [--model MODEL.onnx] [--bits 8|12] [--sample N] [--json] [--cache DIR]

DUMP.npz holds per layer, with any prefix ID (ID sorts in the order of execution):
    ID.spec  bytes (uint8) of a JSON object: name, op, and
             op "conv":   groups, in, out, input [h, w], kernel [h, w], stride [h, w], dilation [h, w],
                          pads [top, left, bottom, right]
             op "matmul": side "right" (y[g,m,n] = Σ x[g,m,k] w[g,k,n]) or "left" (y = Σ w[g,m,k] x[g,k,n]),
                          groups, rows, inner, columns
             and shift where there are two planes of weights: w = w0 + w1·2^shift
    ID.q     int32 inputs, one image after the other      ID.y  int32 answers, centred in ±(p − 1)/2
    ID.w0    int8 weights, ID.w1 a second plane: conv [out][in/groups][kh][kw], matmul as in the formula
Checked: y is exactly L(q) over the integers, |q| ≤ A as the weights allow (so nothing can have wrapped),
and with --model that the weights are those that one of the model's constants rounds to, or consecutive
output channels of it, as where Q, K and V are one matrix. Exit code 1 if not.
The sums run in float64 products, which are exact because every partial sum stays below 2^53 (asserted).
"""
import argparse
import json
import os
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import environment  # noqa: E402
from tools.cache import FetchError, fail  # noqa: E402

P = 2**31 - 1
EXACT = 2**53


class Layer:
    """One dumped layer; raises FetchError where the dump contradicts itself."""

    def __init__(self, key: str, spec: dict, planes):
        import numpy as np
        self.key, self.spec, self.name, self.conv = key, spec, spec["name"], spec["op"] == "conv"
        if spec["op"] not in ("conv", "matmul"):
            raise FetchError(f"{key}: unknown op {spec['op']}")
        weight = sum(plane.astype(np.int64) << (spec.get("shift", 0) * j) for j, plane in enumerate(planes))
        s = spec
        if self.conv:
            self.shape = (s["out"], s["in"] // s["groups"], *s["kernel"])
            self.inputs = s["in"] * s["input"][0] * s["input"][1]
        else:
            left = s["side"] == "left"
            self.shape = (s["groups"], *((s["rows"], s["inner"]) if left else (s["inner"], s["columns"])))
            self.inputs = s["groups"] * s["inner"] * (s["columns"] if left else s["rows"])
        if weight.size != np.prod(self.shape):
            raise FetchError(f"{key} ({self.name}): {weight.size} weights for shape {self.shape}")
        self.weight = weight.reshape(self.shape)

    def by_channel(self):
        """Weights as [output channels, terms of a sum]; groups of a matmul count as channels of their own."""
        if self.conv:
            return self.weight.reshape(self.shape[0], -1)
        turned = self.weight if self.spec["side"] == "left" else self.weight.transpose(0, 2, 1)
        return turned.reshape(-1, self.spec["inner"])

    def bound(self) -> int:
        import numpy as np
        most = int(np.abs(self.by_channel()).sum(axis=1).max())
        return min(2**15 - 1, (P - 1) // 2 // most) if most else 2**15 - 1

    def evaluate(self, q):
        """L(q) over the integers for one image, flat int64."""
        import numpy as np
        largest = int(np.abs(q).max()) * int(np.abs(self.by_channel()).sum(axis=1).max())
        if largest >= EXACT:
            raise FetchError(f"{self.key} ({self.name}): sums up to {largest} cannot be exact here; q is far beyond its bound")
        y = self._conv(q.astype(np.float64)) if self.conv else self._matmul(q.astype(np.float64))
        return y.ravel().astype(np.int64)

    def _matmul(self, q):
        s, w = self.spec, self.weight.astype("float64")
        if s["side"] == "left":
            return w @ q.reshape(s["groups"], s["inner"], s["columns"])
        return q.reshape(s["groups"], s["rows"], s["inner"]) @ w

    def _conv(self, q):
        """Sum over kernel taps of a matrix product each: no reordering trick to get wrong."""
        import numpy as np
        s, g = self.spec, self.spec["groups"]
        (h, w), (kh, kw), (sy, sx), (dy, dx) = s["input"], s["kernel"], s["stride"], s["dilation"]
        top, left, bottom, right = s["pads"]
        oh = (h + top + bottom - dy * (kh - 1) - 1) // sy + 1
        ow = (w + left + right - dx * (kw - 1) - 1) // sx + 1
        x = np.pad(q.reshape(g, s["in"] // g, h, w), ((0, 0), (0, 0), (top, bottom), (left, right)))
        weight = self.weight.astype(np.float64).reshape(g, s["out"] // g, s["in"] // g, kh, kw)
        y = np.zeros((g, s["out"] // g, oh * ow))
        for i in range(kh):
            for j in range(kw):
                part = x[:, :, i * dy:i * dy + (oh - 1) * sy + 1:sy, j * dx:j * dx + (ow - 1) * sx + 1:sx]
                y += np.ascontiguousarray(weight[..., i, j]) @ part.reshape(g, -1, oh * ow)
        return y


def read(path: Path):
    """Yields (Layer, q, y) in order."""
    import numpy as np
    try:
        z = np.load(path)
    except (OSError, ValueError) as e:
        raise FetchError(f"cannot read {path}: {e}") from e
    with z:
        keys = sorted(k[:-len(".spec")] for k in z.files if k.endswith(".spec"))
        if not keys:
            raise FetchError(f"{path} holds no layer (no key that ends in .spec)")
        for key in keys:
            try:
                spec = json.loads(z[f"{key}.spec"].tobytes())
                planes = [z[f"{key}.w{j}"] for j in range(2) if f"{key}.w{j}" in z.files]
                yield Layer(key, spec, planes), z[f"{key}.q"].ravel(), z[f"{key}.y"].ravel()
            except (KeyError, ValueError) as e:
                raise FetchError(f"{path}: layer {key} is incomplete: {e}") from e


def problems(layer: Layer, q, y):
    """What is wrong with this layer: an empty list if nothing is."""
    import numpy as np
    found, images = [], q.size // layer.inputs
    if images == 0 or q.size % layer.inputs:
        return [f"{q.size} inputs are not a multiple of {layer.inputs}"]
    most = int(np.abs(q.astype(np.int64)).max())
    if most > layer.bound():
        found.append(f"|q| reaches {most}, the weights allow {layer.bound()}")
    want = np.concatenate([layer.evaluate(x) for x in q.reshape(images, -1)])
    if want.size != y.size:
        found.append(f"{y.size} answers instead of {want.size}")
    elif not np.array_equal(want, y):
        at = int(np.flatnonzero(want != y)[0])
        found.append(f"{int((want != y).sum())} of {want.size} answers differ, first number {at}: {y[at]}, not {want[at]}")
    return found


def model_weights(path: Path, bits: int) -> set:
    """The model's linear constants as integers, [channels, terms], as hashable values."""
    import onnx
    import numpy as np
    from tools import quantise
    found = set()
    for _, _, axis, weight in quantise.linear_nodes(onnx.load(path)):
        w, _ = quantise.integers(weight, axis, bits)
        # channels are the output axis and, for batched matrices, the batch before it
        w = np.moveaxis(w, axis, 0) if axis != w.ndim - 1 else np.swapaxes(w, -1, -2)
        found.add(w.reshape(-1, int(np.prod(weight.shape)) // _channels(weight, axis)).astype(np.int16).tobytes())
    return found


def are_known(layer: Layer, expected: set) -> bool:
    """Whether one of the model's matrices holds the layer's channels, one after the other."""
    import numpy as np
    channels = layer.by_channel().astype(np.int16)
    ours, row = channels.tobytes(), channels[0].nbytes
    if ours in expected:
        return True
    for theirs in expected:
        at = theirs.find(ours)
        while at % row and at >= 0:
            at = theirs.find(ours, at + 1)
        if at >= 0 and len(theirs) % row == 0:
            return True
    return False


def _channels(weight, axis: int) -> int:
    batch = 1
    if weight.ndim > 2 and axis >= weight.ndim - 2:
        for n in weight.shape[:-2]:
            batch *= n
    return batch * weight.shape[axis]


def check(args) -> int:
    import numpy as np
    expected = model_weights(args.model, args.bits) if args.model else None
    rows = []
    for number, (layer, q, y) in enumerate(read(args.dump)):
        if args.sample and number % args.sample:
            continue
        found = problems(layer, q, y)
        if expected is not None and not are_known(layer, expected):
            found.append(f"its weights are none that the constants of {args.model.name} round to")
        rows.append({"layer": layer.name, "op": layer.spec["op"], "answers": int(y.size), "bound": layer.bound(), "problems": found})
    wrong = [r for r in rows if r["problems"]]
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for r in wrong:
            print(f"{r['layer']}: {'; '.join(r['problems'])}")
        print(f"{len(rows) - len(wrong)} of {len(rows)} layers equal bit for bit, {sum(r['answers'] for r in rows)} answers")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("dump", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--bits", type=int, choices=[8, 12], default=8)
    parser.add_argument("--sample", type=int, help="check every N-th layer only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if args.cache:
        os.environ["LARVATUS_CACHE"] = str(args.cache.resolve())
    try:
        environment.enter()
        return check(args)
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
