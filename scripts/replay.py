#!/usr/bin/env python3
"""Replays units of a whole network from their openings, with numpy and the definitions alone.

    target/release/whole --dump DIR MODEL.onnx
    python3 scripts/replay.py DIR

DIR holds `model.bin` (an encoded graph, then its constants), `leaves.bin` (opened leaves: place, leaf, length as 32-bit words,
then the bytes) and `units.txt` (its first line is the number of bytes of the graph; each other line a unit: its number, its node,
and the runs of elements that it makes). The script decodes the graph, finds for itself which elements each unit needs,
recomputes, and compares bit for bit. It shares no code with the implementation; that the leaves lie under the root is
checked by who writes them. Exits with 1 where a unit differs.
"""
import struct
import sys
from pathlib import Path

import numpy as np

F = np.float32
LEAF = 64 << 10
ACTIVATIONS = {0: 0, 1: 0, 2: 1, 3: 2, 4: 2, 5: 0, 6: 0, 7: 0, 8: 0, 9: 0}
EXP = [0.5, 1.6666667e-1, 4.166604e-2, 8.333264e-3, 1.3967818e-3, 1.9928926e-4]
MILLS = [7.5528514e-1, -6.078967e-1, 3.8713735e-1, -1.8652128e-1, 6.039753e-2, -7.545268e-3, -3.4893174e-3, 1.6452193e-3,
         1.710546e-4, -2.3179868e-4, -5.155659e-5]


class Bytes:
    """Little-endian values from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values if len(values) > 1 else values[0]

    def u8(self):
        return self.take("B")

    def u32(self):
        return self.take("I")

    def f32(self):
        return F(self.take("f"))

    def sizes(self, count):
        return [self.u32() for _ in range(count)]

    def text(self):
        length = self.u32()
        self.at += length
        return self.data[self.at - length:self.at].decode()

    def many(self, each):
        return [each() for _ in range(self.u32())]

    def option(self, each):
        return each() if self.u8() else None

    def source(self):
        return ("tensor" if self.u8() == 1 else "constant", self.u32())

    def constant(self):
        return ("constant", self.u32())

    def order(self):
        return self.sizes(4) if self.u8() else None

    def activation(self):
        tag = self.u8()
        return (tag, [self.f32() for _ in range(ACTIVATIONS[tag])])

    def windows(self):
        return {"planes": self.u32(), **{key: self.sizes(2) for key in ("input", "output", "kernel", "stride", "before")}}

    def layer(self):
        if self.u8() == 1:
            layer = dict(zip(("groups", "in", "out"), self.sizes(3)), conv=True)
            layer.update({key: self.sizes(2) for key in ("input", "kernel", "stride", "dilation", "begin", "end")})
            layer["output"] = [(layer["input"][a] + layer["begin"][a] + layer["end"][a]
                                - layer["dilation"][a] * (layer["kernel"][a] - 1) - 1) // layer["stride"][a] + 1 for a in (0, 1)]
        else:
            layer = dict(zip(("groups", "rows", "inner", "columns"), self.sizes(4)), conv=False)
        return {**layer, "images": self.u32(), "planes": self.u8(), "shift": self.u8()}

    def op(self):
        tag = self.u8()
        if tag == 1:
            op = {"layer": self.layer(), "input": ("tensor", self.u32()), "maxima": ("tensor", self.u32()), "weights": self.constant(),
                  "bound": self.u32(), "factor": self.constant(), "bias": self.option(self.constant), "pre": self.activation(),
                  "residual": self.option(self.source), "post": self.activation(), "pool": self.option(self.windows)}
        elif tag == 2:
            op = {"input": ("tensor", self.u32()), "count": self.u32()}
        elif tag == 3:
            op = {"batches": self.u32(), "advance": self.sizes(5)}
            op.update(zip(("heads", "queries", "keys", "depth", "width"), self.sizes(5)))
            op.update({key: self.sizes(3) for key in ("q", "k", "v", "out")})
            op.update(scale=self.option(self.f32), place=self.option(lambda: self.sizes(3)))
            op.update(inputs=[self.source() for _ in range(3)], mask=self.option(self.source))
        elif tag == 4:
            op = {"batches": self.u32(), "advance": self.sizes(3)}
            op.update(zip(("matrices", "rows", "inner", "cols"), self.sizes(4)))
            op.update({key: self.sizes(3) for key in ("a", "b", "out")}, inputs=[self.source(), self.source()])
        elif tag == 5:
            op = {"input": self.source(), "steps": self.many(self.step)}
        elif tag == 6:
            op = {"input": self.source(), "windows": self.windows(), "filters": self.constant(), "bias": self.option(self.constant)}
        elif tag == 7:
            op = {"input": self.source(), "cols": self.u32(), "epsilon": self.f32(), "gamma": self.option(self.constant),
                  "beta": self.option(self.constant)}
        elif tag == 8:
            op = {"input": self.source(), "cols": self.u32()}
        elif tag in (9, 10):
            op = {"input": self.source(), "windows": self.windows()}
            if tag == 10:
                op["divisor"] = self.u8()
        elif tag == 11:
            op = {"input": self.source(), "cols": self.u32(), "factor": self.f32()}
        elif tag == 12:
            op = {"input": self.source(), "start": self.u32(), "axes": self.many(lambda: self.sizes(2))}
        elif tag == 13:
            op = {"outer": self.u32(), "parts": self.many(lambda: (self.source(), self.u32()))}
        elif tag == 14:
            op = {"table": self.constant(), "cols": self.u32(), "input": self.source()}
        elif tag == 15:
            op = {"input": self.source()}
        else:
            raise ValueError(f"operator {tag}")
        return {"tag": tag, **op}

    def step(self):
        tag = self.u8()
        return (0, self.activation()) if tag == 0 else (tag, self.source(), self.u32())


def exp(x, small=F(0)):
    x = np.where(F(-88) > x, F(-88), x)
    k = np.rint(x * F(1.44269504))
    r = x - k * F(0.6933594)
    r = r - k * F(-2.1219444e-4)
    r = r + small
    h = np.full_like(r, F(EXP[5]))
    for c in EXP[4::-1]:
        h = h * r + F(c)
    y = (r * r * h + r) + F(1)
    return y * np.where(k <= -127, F(0), np.ldexp(F(1), k.astype(np.int32))).astype(F)


def sigmoid(x):
    e = exp(F(0) - np.abs(x))
    return np.where(np.signbit(x), e, F(1)) / (F(1) + e)


def gelu(x):
    z = np.minimum(F(15), np.abs(x))
    w = F(1) / (z + F(4))
    t = (z - F(4)) * w
    g = np.full_like(t, F(MILLS[10]))
    for c in MILLS[9::-1]:
        g = g * t + F(c)
    head = (z.view(np.uint32) & np.uint32(0xFFFFF000)).view(F)
    square = head * head * F(-0.5)
    rest = (z - head) * (z + head) * F(-0.5)
    tail = exp(square, rest) * (g * w)
    return x * np.where(np.signbit(x), tail, F(1) - tail)


def larger(a, b):
    return np.where(a > b, a, b)


def smaller(a, b):
    return np.where(a < b, a, b)


def activate(activation, x):
    tag, numbers = activation
    if tag == 0:
        return x
    if tag == 1:
        return larger(F(0), x)
    if tag == 2:
        return np.where(np.signbit(x), x * numbers[0], x)
    if tag == 3:
        return smaller(numbers[1], larger(numbers[0], x))
    if tag == 4:
        return smaller(F(1), larger(F(0), x * numbers[0] + numbers[1]))
    if tag == 5:
        return x * activate((4, [F(1) / F(6), F(0.5)]), x)
    if tag == 6:
        return sigmoid(x)
    if tag == 7:
        return x * sigmoid(x)
    if tag == 8:
        return gelu(x)
    inner = x + x * x * x * F(0.044715)
    return x * sigmoid(inner * F(1.595769))


def total(x):
    """The sum along the last axis: 32 partial sums, then a tree."""
    cols = x.shape[-1]
    whole = np.zeros(x.shape[:-1] + (-(-cols // 32) * 32,), F)
    whole[..., :cols] = x
    partial = np.zeros(x.shape[:-1] + (32,), F)
    for at in range(0, whole.shape[-1], 32):
        partial = partial + whole[..., at:at + 32]
    for half in (16, 8, 4):
        partial = partial[..., :half] + partial[..., half:2 * half]
    return (partial[..., 0] + partial[..., 2]) + (partial[..., 1] + partial[..., 3])


def softmax(x):
    e = exp(x - x.max(axis=-1, keepdims=True))
    return e * (F(1) / total(e))[..., None]


def dot(a, b):
    """a (… × k) times b (k × n), terms in their order."""
    y = np.zeros(a.shape[:-1] + (b.shape[1],), F)
    for k in range(b.shape[0]):
        y = y + a[..., k, None] * b[k]
    return y


class Trace:
    """A graph, its constants and the leaves that were opened."""

    def __init__(self, folder):
        blob = (folder / "model.bin").read_bytes()
        lines = (folder / "units.txt").read_text().splitlines()
        graph_bytes = int(lines[0])
        self.units = [[int(word) for word in line.split()] for line in lines[1:]]
        data = Bytes(blob[:graph_bytes])
        if data.u32() != 1:
            raise ValueError("another version of graphs")
        data.sizes(2)
        self.tensors = []

        def port():
            data.text()
            shape = data.many(data.u32)
            self.tensors.append((data.u8(), int(np.prod(shape)), data.order()))

        data.many(port)
        self.inputs = len(self.tensors)
        constants = data.many(lambda: (data.u8(), data.u32()))
        self.nodes = data.many(lambda: (data.text(), data.order(), data.op()))
        outputs = data.many(lambda: (data.text(), data.many(data.u32), data.u32()))
        if data.at != graph_bytes:
            raise ValueError("bytes after the graph")
        kinds = {1: np.int8, 2: F, 3: np.int64}
        self.constants, at = [], graph_bytes
        for kind, count in constants:
            self.constants.append(np.frombuffer(blob, kinds[kind], count, at))
            at += self.constants[-1].nbytes
        last = [output[2] for output in outputs]
        others = [tensor for tensor in range(self.inputs + len(self.nodes)) if tensor not in last]
        self.places = {tensor: place for place, tensor in enumerate(others + last)}
        self.orders = [tensor[2] for tensor in self.tensors] + [node[1] for node in self.nodes]
        self.wide = {tensor for tensor, (kind, _, _) in enumerate(self.tensors) if kind == 2}
        self.leaves, opened, at = {}, (folder / "leaves.bin").read_bytes(), 0
        while at < len(opened):
            place, leaf, length = struct.unpack_from("<III", opened, at)
            self.leaves[place, leaf] = opened[at + 12:at + 12 + length]
            at += 12 + length

    def read(self, source, elements):
        """Elements by their place in memory."""
        kind, number = source
        if kind == "constant":
            return self.constants[number][elements]
        at = np.asarray(elements, np.int64)
        if self.orders[number]:
            _, channels, lines, width = self.orders[number]
            line, column = at // width, at % width
            plane, line = line // lines, line % lines
            at = ((plane // channels * lines + line) * channels + plane % channels) * width + column
        form = np.dtype(np.int64 if number in self.wide else F)
        each = LEAF // form.itemsize
        values = np.empty(at.shape, form)
        for leaf in np.unique(at // each):
            here = at // each == leaf
            values[here] = np.frombuffer(self.leaves[self.places[number], int(leaf)], form)[at[here] % each]
        return values

    def vector(self, source):
        return None if source is None else self.constants[source[1]]


def padded(trace, source, plane, height, width, row, column, outside):
    """Pixels of planes; `outside` beyond the border."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = (plane * height + np.clip(row, 0, height - 1)) * width + np.clip(column, 0, width - 1)
    values = np.full(inside.shape, outside, F)
    at = np.broadcast_to(at, inside.shape)
    values[inside] = trace.read(source, at[inside])
    return values


def convolution(trace, op, image, channel, row, column):
    """Elements of a convolution with what follows it, before pooling."""
    layer = op["layer"]
    (height, width), (kh, kw) = layer["input"], layer["kernel"]
    inner = layer["in"] // layer["groups"]
    largest = trace.read(op["maxima"], image)
    step, inverse = scale(largest, op["bound"])
    group = channel // (layer["out"] // layer["groups"])
    taps = np.arange(inner * kh * kw)
    plane = (image * layer["in"] + group * inner)[:, None] + taps // (kh * kw)
    rows = (row * layer["stride"][0] - layer["begin"][0])[:, None] + taps // kw % kh * layer["dilation"][0]
    columns = (column * layer["stride"][1] - layer["begin"][1])[:, None] + taps % kw * layer["dilation"][1]
    x = padded(trace, op["input"], plane, height, width, rows, columns, 0)
    if (np.abs(x) > largest[:, None]).any():
        raise ValueError("a value above its maximum")
    w = weights(trace, op).reshape(layer["out"], -1)[channel]
    y = (quantise(x, inverse[:, None], op["bound"]) * w).sum(axis=1)
    bias = trace.vector(op["bias"])
    y = y.astype(F) * (trace.vector(op["factor"])[channel] * step) + (F(0) if bias is None else bias[channel])
    at = ((image * layer["out"] + channel) * layer["output"][0] + row) * layer["output"][1] + column
    return follow(trace, op, y, at)


def product(trace, op, at):
    layer = op["layer"]
    columns, inner = layer["columns"], layer["inner"]
    row, column = at // columns, at % columns
    group = row // layer["rows"] % layer["groups"]
    largest = trace.read(op["maxima"], row)
    step, inverse = scale(largest, op["bound"])
    y, w = np.zeros(len(at)), weights(trace, op).reshape(layer["groups"], inner, columns)
    for one in np.unique(row):
        here = row == one
        x = trace.read(op["input"], one * inner + np.arange(inner))
        if np.abs(x).max() != largest[here][0]:
            raise ValueError("a maximum that is not its row's")
        y[here] = quantise(x, inverse[here][0], op["bound"]) @ w[group[here][0]][:, column[here]]
    channel, bias = group * columns + column, trace.vector(op["bias"])
    y = y.astype(F) * step * trace.vector(op["factor"])[channel] + (F(0) if bias is None else bias[channel])
    return follow(trace, op, y, at)


def weights(trace, op):
    layer = op["layer"]
    planes = trace.vector(op["weights"]).reshape(layer["planes"], -1).astype(np.float64)
    return sum(plane * 2.0 ** (layer["shift"] * index) for index, plane in enumerate(planes))


def scale(largest, bound):
    steps, tiny = F(bound), np.finfo(F).tiny
    step = largest / steps
    unused = (largest < tiny) | (bound == 0)
    with np.errstate(divide="ignore"):
        inverse = np.where(step < tiny, F(1) / tiny, steps / largest)
    return np.where(unused, F(1), np.maximum(step, tiny)).astype(F), np.where(unused, F(0), inverse).astype(F)


def quantise(x, inverse, bound):
    return np.rint(np.clip(x * inverse, F(-bound), F(bound))).astype(np.float64)


def follow(trace, op, y, at):
    y = activate(op["pre"], y)
    if op["residual"] is not None:
        y = y + trace.read(op["residual"], at)
    return activate(op["post"], y)


def pixels(shape, at):
    """Plane, row and column of elements."""
    return at // (shape[0] * shape[1]), at // shape[1] % shape[0], at % shape[1]


def windowed(windows, at, value, start, fold):
    """Folds windows, down the columns first, as the kernels do."""
    plane, row, column = pixels(windows["output"], at)
    whole = np.full(len(at), start, F)
    for across in range(windows["kernel"][1]):
        x = column * windows["stride"][1] - windows["before"][1] + across
        down = np.full(len(at), start, F)
        for along in range(windows["kernel"][0]):
            y = row * windows["stride"][0] - windows["before"][0] + along
            there = (x >= 0) & (x < windows["input"][1]) & (y >= 0) & (y < windows["input"][0])
            down[there] = fold(down[there], value(plane[there], y[there], x[there]))
        there = (x >= 0) & (x < windows["input"][1])
        whole[there] = fold(whole[there], down[there])
    return whole


def linear(trace, op, at):
    layer, pool = op["layer"], op["pool"]
    if not layer["conv"]:
        return product(trace, op, at)

    def value(plane, row, column):
        # A product over planes sees all lines as one.
        pixel = row * (pool["input"] if pool else layer["output"])[1] + column
        row, column = pixel // layer["output"][1], pixel % layer["output"][1]
        some = max(1, (1 << 22) // (layer["in"] // layer["groups"] * layer["kernel"][0] * layer["kernel"][1]))
        parts = [slice(start, start + some) for start in range(0, len(plane), some)]
        return np.concatenate([np.zeros(0, F)] + [convolution(
            trace, op, plane[part] // layer["out"], plane[part] % layer["out"], row[part], column[part]) for part in parts])

    if pool is None:
        return value(*pixels(layer["output"], at))
    return windowed(pool, at, value, -np.inf, lambda all, x: np.where(x > all, x, all))


def attention(trace, op, at):
    y = np.empty(len(at), F)
    keys, depth, width = (np.arange(op[key]) for key in ("keys", "depth", "width"))
    where = {}
    for batch in range(op["batches"]):
        for head in range(op["heads"]):
            for row in range(op["queries"]):
                where[batch * op["advance"][4] + head * op["out"][0] + row * op["out"][1]] = (batch, head, row)
    firsts = np.array(sorted(where))
    first = firsts[np.searchsorted(firsts, at, side="right") - 1]
    for one in np.unique(first):
        batch, head, row = where[one]

        def matrix(index, place, rows, columns):
            start = batch * op["advance"][index] + head * place[0]
            source = op["inputs"][index] if index < 3 else op["mask"]
            return trace.read(source, start + rows[:, None] * place[1] + columns * place[2])

        row = np.array([row])
        scores = dot(matrix(0, op["q"], row, depth), matrix(1, op["k"], keys, depth).T)
        if op["scale"] is not None:
            scores = scores * op["scale"]
        if op["mask"] is not None:
            scores = scores + matrix(3, op["place"], row, keys)
        result = dot(softmax(scores), matrix(2, op["v"], keys, width))[0]
        y[first == one] = result[at[first == one] - one]
    return y


def products(trace, op, at):
    y = np.empty(len(at), F)
    starts = {batch * op["advance"][2] + matrix * op["out"][0] + row * op["out"][1]: (batch, matrix, row)
              for batch in range(op["batches"]) for matrix in range(op["matrices"]) for row in range(op["rows"])}
    firsts = np.array(sorted(starts))
    first = firsts[np.searchsorted(firsts, at, side="right") - 1]
    inner, cols = np.arange(op["inner"]), np.arange(op["cols"])
    for one in np.unique(first):
        batch, matrix, row = starts[one]
        a, b = (batch * op["advance"][i] + matrix * op[key][0] for i, key in enumerate("ab"))
        a = trace.read(op["inputs"][0], a + row * op["a"][1] + inner * op["a"][2])
        b = trace.read(op["inputs"][1], b + inner[:, None] * op["b"][1] + cols * op["b"][2])
        y[first == one] = dot(a[None], b)[0][at[first == one] - one]
    return y


def chain(trace, op, at):
    y = trace.read(op["input"], at)
    for step in op["steps"]:
        if step[0] == 0:
            y = activate(step[1], y)
            continue
        tag, source, run = step
        b = trace.read(source, at // run % trace.elements(source))
        y = {1: lambda: y + b, 2: lambda: y / b, 3: lambda: larger(b, y), 4: lambda: smaller(b, y), 5: lambda: y * b,
             6: lambda: y - b, 7: lambda: b - y}[tag]()
    return y


def rows(trace, op, at):
    """Operators that take each row by itself."""
    cols = op["cols"]
    row = np.unique(at if op["tag"] == 11 else at // cols)
    x = trace.read(op["input"], row[:, None] * cols + np.arange(cols))
    if op["tag"] == 11:
        return (total(x) * op["factor"])[np.searchsorted(row, at)]
    if op["tag"] == 8:
        y = softmax(x)
    else:
        share = F(1) / F(cols)
        mean = (total(x) * share)[:, None]
        variance = total((x - mean) * (x - mean)) * share
        y = (x - mean) * (F(1) / np.sqrt(variance + op["epsilon"]))[:, None]
        for vector, apply in ((op["gamma"], np.multiply), (op["beta"], np.add)):
            if vector is not None:
                y = apply(y, trace.vector(vector))
    return y[np.searchsorted(row, at // cols), at % cols]


def depthwise(trace, op, at):
    windows, filters = op["windows"], trace.vector(op["filters"])
    taps = windows["kernel"][0] * windows["kernel"][1]
    plane, row, column = pixels(windows["output"], at)
    channel = plane % (len(filters) // taps)
    bias = trace.vector(op["bias"])
    y = np.zeros(len(at), F) if bias is None else bias[channel]
    for tap in range(taps):
        down, across = row * windows["stride"][0] + tap // windows["kernel"][1], column * windows["stride"][1] + tap % windows["kernel"][1]
        x = padded(trace, op["input"], plane, *windows["input"], down - windows["before"][0], across - windows["before"][1], 0)
        y = y + filters[channel * taps + tap] * x
    return y


def pooled(trace, op, at):
    windows = op["windows"]
    (height, width) = windows["input"]

    def value(plane, row, column):
        return trace.read(op["input"], (plane * height + row) * width + column)

    if op["tag"] == 9:
        return windowed(windows, at, value, -np.inf, lambda all, x: np.where(x > all, x, all))
    y = windowed(windows, at, value, 0, lambda all, x: all + x)
    _, row, column = pixels(windows["output"], at)

    def present(axis, at):
        first = at * windows["stride"][axis] - windows["before"][axis]
        last = first + windows["kernel"][axis]
        return np.minimum(last, windows["input"][axis]) - np.maximum(first, 0)

    if op["divisor"] == 3:
        return y / (present(0, row) * present(1, column)).astype(F)
    return y / F(windows["kernel"][0] * windows["kernel"][1] if op["divisor"] == 2 else 1)


def view(trace, op, at):
    place, rest = np.full(len(at), op["start"]), at
    for length, stride in reversed(op["axes"]):
        place, rest = place + rest % length * stride, rest // length
    return trace.read(op["input"], place)


def concat(trace, op, at):
    inner, y = sum(length for _, length in op["parts"]), None
    outer, within = at // inner, at % inner
    for source, length in op["parts"]:
        here = (within >= 0) & (within < length)
        values = trace.read(source, outer[here] * length + within[here])
        y = np.empty(len(at), values.dtype) if y is None else y
        y[here] = values
        within = within - length
    return y


def gather(trace, op, at):
    numbers = trace.read(op["input"], at // op["cols"])
    table = trace.vector(op["table"])
    return table[numbers % (len(table) // op["cols"]) * op["cols"] + at % op["cols"]]


def maxima(trace, op, at):
    each = trace.elements(op["input"]) // op["count"]
    return np.array([np.abs(trace.read(op["input"], one * each + np.arange(each))).max() for one in at], F)


OPERATORS = {1: linear, 2: maxima, 3: attention, 4: products, 5: chain, 6: depthwise, 7: rows, 8: rows, 9: pooled, 10: pooled, 11: rows,
             12: view, 13: concat, 14: gather, 15: lambda trace, op, at: trace.read(op["input"], at).astype(F)}


def elements_of(trace):
    """Elements of every tensor, from what its node says."""
    counts = [count for _, count, _ in trace.tensors]

    def of(source):
        return len(trace.constants[source[1]]) if source[0] == "constant" else counts[source[1]]

    for number, (_, _, op) in enumerate(trace.nodes):
        tag = op["tag"]
        if tag == 1:
            layer = op["layer"]
            plane = (op["pool"] or layer)["output"] if layer["conv"] else [layer["rows"], layer["columns"]]
            count = layer["images"] * (layer["out"] if layer["conv"] else layer["groups"]) * plane[0] * plane[1]
        elif tag == 2:
            count = op["count"]
        elif tag == 3:
            count = op["batches"] * op["heads"] * op["queries"] * op["width"]
        elif tag == 4:
            count = op["batches"] * op["matrices"] * op["rows"] * op["cols"]
        elif tag in (6, 9, 10):
            count = op["windows"]["planes"] * op["windows"]["output"][0] * op["windows"]["output"][1]
        elif tag == 11:
            count = of(op["input"]) // op["cols"]
        elif tag == 12:
            count = int(np.prod([length for length, _ in op["axes"]]))
            if op["input"][0] == "tensor" and op["input"][1] in trace.wide:
                trace.wide.add(trace.inputs + number)
        elif tag == 13:
            count = op["outer"] * sum(length for _, length in op["parts"])
        elif tag == 14:
            count = of(op["input"]) * op["cols"]
        else:
            count = of(op["input"])
        counts.append(count)
    return of


def main():
    trace = Trace(Path(sys.argv[1]))
    trace.elements = elements_of(trace)
    wrong, kinds = 0, {}
    for unit, number, *runs in trace.units:
        name, _, op = trace.nodes[number]
        at = np.concatenate([np.arange(first, last) for first, last in zip(runs[::2], runs[1::2])])
        claimed = trace.read(("tensor", trace.inputs + number), at)
        with np.errstate(over="ignore", invalid="ignore"):
            computed = np.asarray(OPERATORS[op["tag"]](trace, op, at), claimed.dtype)
        form = np.dtype(f"u{claimed.itemsize}")
        differ = np.flatnonzero(claimed.view(form) != computed.view(form))
        label = OPERATORS[op["tag"]].__name__
        kinds[label] = kinds.get(label, 0) + 1
        if len(differ):
            wrong += 1
            first = differ[0]
            print(f"unit {unit} ({name}, {label}): {len(differ)} of {len(at)} elements differ, first {at[first]}: "
                  f"{claimed[first]!r} claimed, {computed[first]!r} follows")
    print(f"{len(trace.units)} units, {wrong} differ: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
