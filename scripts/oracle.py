#!/usr/bin/env python3
"""An independent oracle for the exact linear layers: writes and checks `testkit/vectors/*.txt`.

    python3 scripts/oracle.py vectors    write the files
    python3 scripts/oracle.py check      fail unless the committed files are what this script writes

Plain Python integers and the definitions of the layers; it shares no code and no trick with the
implementation. Standard library only. The same files come out on every machine and version.
"""
import argparse
import hashlib
import sys
from pathlib import Path

P = 2**31 - 1
VECTORS = Path(__file__).resolve().parents[1] / "testkit" / "vectors"

HEADER = """\
# Exact linear layers over F_p, p = 2^31 - 1. Written by scripts/oracle.py; do not edit.
#
# A file is a list of cases, a case a list of `key: value` lines in this order, an empty line after it:
#   expect   first of all the verdict:
#            accept
#            reject non-canonical index=I      the first answer word >= p is number I
#            reject length got=G want=W        the answer has G words, the layer W
#            reject product repetition=R       <v, y> != <a, x> in repetition R, the first that differs
#            reject shape                      no such layer: the constructor must refuse it
#   case     a name
#   layer    conv groups=G in=C out=O input=H,W kernel=KH,KW stride=S,S dilation=D,D pads=TOP,LEFT,BOTTOM,RIGHT
#            matmul side=right groups=G rows=M inner=K columns=N      y[g,m,n] = sum_k x[g,m,k] w[g,k,n]
#            matmul side=left  groups=G rows=M inner=K columns=N      y[g,m,n] = sum_k w[g,m,k] x[g,k,n]
#            A one-dimensional convolution has height 1. Zero padding belongs to the layer.
#   weight.J plane J of the weights, signed bytes in two's complement: conv [out][in/groups][kh][kw], matmul as in
#            the formula; w = sum_J plane J * 2^(shift*J)
#   shift    only where there is more than one plane
#   x        input words, conv [in][h][w]; any u32, so it may be >= p: it stands for its residue
#   outer.R, inner.R   the check vector v[r,c] = outer[r]*inner[c] of repetition R over the answer as a matrix:
#            conv: channels by pixels; matmul right and left: (groups*rows) by columns
#   adjoint.R  a = L^T v over the input, where the case states it
#   product.R  <a, x>; an answer y is right only if <v, y> gives the same
#   answer   the answer words as a worker sent them
# Numbers are hexadecimal words without leading zeros; N*COUNT stands for COUNT times N; an empty list has
# nothing after the colon. A `reject shape` case has only its layer.
"""


class Draw:
    """Reproducible numbers, equal on every Python: SHA-256 in counter mode."""

    def __init__(self, label: str):
        self.label, self.counter, self.pool = label.encode(), 0, b""

    def u32(self) -> int:
        if len(self.pool) < 4:
            self.pool += hashlib.sha256(self.label + self.counter.to_bytes(8, "big")).digest()
            self.counter += 1
        word, self.pool = int.from_bytes(self.pool[:4], "big"), self.pool[4:]
        return word

    def below(self, n: int) -> int:
        limit = 2**32 - 2**32 % n
        while (w := self.u32()) >= limit:
            pass
        return w % n

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def pick(self, items):
        return items[self.below(len(items))]

    def field(self, n: int):
        return [self.below(P) for _ in range(n)]


# -- the layers, from their definitions -------------------------------------------------------

class Conv:
    def __init__(self, groups, channels, out, size, kernel, stride=(1, 1), dilation=(1, 1), pads=(0, 0, 0, 0)):
        self.groups, self.channels, self.out, self.size, self.kernel = groups, channels, out, size, kernel
        self.stride, self.dilation, self.pads = stride, dilation, pads
        self.inputs = channels * size[0] * size[1]
        self.weights = out * (channels // max(groups, 1)) * kernel[0] * kernel[1]
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
        self.out_size = [(n + a + b - r) // max(s, 1) + 1
                         for n, a, b, r, s in zip(size, pads[:2], pads[2:], reach, stride)]
        self.answer_shape = (out, self.out_size[0] * self.out_size[1])

    def text(self):
        two = lambda v: ",".join(map(str, v))  # noqa: E731
        return (f"conv groups={self.groups} in={self.channels} out={self.out} input={two(self.size)} "
                f"kernel={two(self.kernel)} stride={two(self.stride)} dilation={two(self.dilation)} pads={two(self.pads)}")

    def terms(self):
        """(answer index, weight index, input index) of every product of the sum that defines the layer."""
        (h, w), (kh, kw), (oh, ow) = self.size, self.kernel, self.out_size
        per, outs = self.channels // self.groups, self.out // self.groups
        for o in range(self.out):
            for i in range(per):
                c = o // outs * per + i
                for ky in range(kh):
                    for kx in range(kw):
                        weight = ((o * per + i) * kh + ky) * kw + kx
                        for oy in range(oh):
                            y = oy * self.stride[0] - self.pads[0] + ky * self.dilation[0]
                            if not 0 <= y < h:
                                continue
                            for ox in range(ow):
                                x = ox * self.stride[1] - self.pads[1] + kx * self.dilation[1]
                                if 0 <= x < w:
                                    yield (o * oh + oy) * ow + ox, weight, (c * h + y) * w + x


class MatMul:
    def __init__(self, side, groups, rows, inner, columns):
        self.side, self.groups, self.rows, self.inner, self.columns = side, groups, rows, inner, columns
        a, b = groups * rows * inner, groups * inner * columns
        self.inputs, self.weights = (a, b) if side == "right" else (b, a)
        self.answer_shape = (groups * rows, columns)

    def text(self):
        return (f"matmul side={self.side} groups={self.groups} rows={self.rows} inner={self.inner} "
                f"columns={self.columns}")

    def terms(self):
        for g in range(self.groups):
            for m in range(self.rows):
                for n in range(self.columns):
                    for k in range(self.inner):
                        left, right = (g * self.rows + m) * self.inner + k, (g * self.inner + k) * self.columns + n
                        w, x = (right, left) if self.side == "right" else (left, right)
                        yield (g * self.rows + m) * self.columns + n, w, x


def combine(planes, shift):
    return [sum(w << (shift * j) for j, w in enumerate(ws)) for ws in zip(*planes)]


def apply(layer, weights, x):
    """y = L(x) mod p, summed without any reduction in between."""
    y = [0] * (layer.answer_shape[0] * layer.answer_shape[1])
    for o, w, i in layer.terms():
        y[o] += weights[w] * x[i]
    return [v % P for v in y]


def adjoint(layer, weights, v):
    """a = Lᵀ v mod p: ⟨v, L x⟩ = ⟨a, x⟩ for every x."""
    a = [0] * layer.inputs
    for o, w, i in layer.terms():
        a[i] += weights[w] * v[o]
    return [t % P for t in a]


def dot(a, b):
    return sum(s * t for s, t in zip(a, b)) % P


# -- cases ------------------------------------------------------------------------------------

def packed(numbers):
    """Hexadecimal words, runs of four or more equal ones written once."""
    out, i = [], 0
    while i < len(numbers):
        run = 1
        while i + run < len(numbers) and numbers[i + run] == numbers[i]:
            run += 1
        out += [f"{numbers[i]:x}*{run}"] if run >= 4 else [f"{numbers[i]:x}"] * run
        i += run
    return " ".join(out)


class Case:
    def __init__(self, name, layer, draw, planes=None, shift=8, x=None, repetitions=2, with_adjoint=False, v=None):
        self.name, self.layer, self.shift = name, layer, shift
        self.planes = planes or [[draw.between(-127, 127) for _ in range(layer.weights)]]
        self.x = x or draw.field(layer.inputs)
        rows, columns = layer.answer_shape
        weights = combine(self.planes, shift)
        self.answer = apply(layer, weights, self.x)
        self.v = v or [(draw.field(rows), draw.field(columns)) for _ in range(repetitions)]
        dense = [[s * t % P for s in outer for t in inner] for outer, inner in self.v]
        self.adjoint = [adjoint(layer, weights, d) for d in dense] if with_adjoint else []
        self.dense, self.product = dense, [dot(d, self.answer) for d in dense]
        for a, product in zip(self.adjoint, self.product):
            assert dot(a, self.x) == product

    def lines(self, answer=None):
        answer = self.answer if answer is None else answer
        yield f"expect: {self.verdict(answer)}"
        yield f"case: {self.name}"
        yield f"layer: {self.layer.text()}"
        for j, plane in enumerate(self.planes):
            yield f"weight.{j}: {packed([w & 255 for w in plane])}"
        if len(self.planes) > 1:
            yield f"shift: {self.shift}"
        yield f"x: {packed(self.x)}"
        for r, (outer, inner) in enumerate(self.v):
            yield f"outer.{r}: {packed(outer)}"
            yield f"inner.{r}: {packed(inner)}"
        for r, a in enumerate(self.adjoint):
            yield f"adjoint.{r}: {packed(a)}"
        for r, product in enumerate(self.product):
            yield f"product.{r}: {product:x}"
        yield f"answer: {packed(answer)}".rstrip()

    def verdict(self, answer):
        """What a checker must say, length first, then canonical words, then the products."""
        want = len(self.answer)
        if len(answer) != want:
            return f"reject length got={len(answer)} want={want}"
        for i, word in enumerate(answer):
            if word >= P:
                return f"reject non-canonical index={i}"
        for r, (d, product) in enumerate(zip(self.dense, self.product)):
            if dot(d, answer) != product:
                return f"reject product repetition={r}"
        return "accept"


def random_conv(draw, index):
    """A convolution whose output is not empty; every third is one-dimensional."""
    flat = index % 3 == 0
    while True:
        kernel = [1 if flat else draw.pick([1, 2, 3, 3, 4, 5, 7]), draw.pick([1, 1, 2, 3, 3, 4, 5, 7])]
        stride = [1 if flat else draw.between(1, 3), draw.between(1, 3)]
        dilation = [1 if flat else draw.pick([1, 1, 2, 3]), draw.pick([1, 1, 2, 3])]
        pads = [draw.between(0, k) for k in kernel] + [draw.between(0, k) for k in kernel]
        if flat:
            pads[0] = pads[2] = 0
        size = [1, draw.between(1, 40)] if flat else [draw.between(1, 9), draw.between(1, 9)]
        style = draw.pick(["dense", "dense", "grouped", "depthwise", "multiplier"])
        groups = {"dense": 1, "grouped": draw.between(2, 4)}.get(style, draw.between(2, 9))
        per = 1 if style in ("depthwise", "multiplier") else draw.between(1, 9)
        out = {"depthwise": groups, "multiplier": groups * draw.between(2, 3)}.get(style, groups * draw.between(1, 9))
        layer = Conv(groups, groups * per, out, size, kernel, stride, dilation, pads)
        answers = layer.answer_shape[0] * layer.answer_shape[1]
        if min(layer.out_size) >= 1 and layer.inputs <= 260 and answers <= 260 and layer.weights <= 800:
            return layer


def random_matmul(draw, index):
    side = "left" if index % 3 == 2 else "right"
    groups = draw.pick([1, 1, 1, 2, 3])
    rows, columns = draw.pick([1, 1, 2, 3, 5, 17]), draw.pick([1, 2, 3, 7, 16, 17])
    return MatMul(side, groups, rows, draw.pick([1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 65]), columns)


def fields(draw, layer, index):
    """Inputs: mostly uniform, and in turn zero, p − 1, all ones, above p, one-hot, alternating extremes."""
    n, kind = layer.inputs, index % 12
    if kind < 6:
        return draw.field(n)
    if kind == 11:
        return [0 if i % 2 else P - 1 for i in range(n)]
    return {6: [0] * n, 7: [P - 1] * n, 8: [2**32 - 1] * n, 9: [P + draw.below(P) for _ in range(n)],
            10: [int(i == n // 2) for i in range(n)]}[kind]


def signs(draw, layer, index):
    """Weights: mostly uniform in ±127, and in turn ±127 only, zero, with −128, constant."""
    n, kind = layer.weights, index % 10
    return {5: [draw.pick([-127, 127]) for _ in range(n)], 6: [0] * n, 7: [draw.between(-128, 127) for _ in range(n)],
            8: [127] * n, 9: [-128] * n}.get(kind) or [draw.between(-127, 127) for _ in range(n)]


def conv_cases():
    draw = Draw("conv")
    for i in range(150):
        layer = random_conv(draw, i)
        yield Case(f"conv-{i}", layer, draw, [signs(draw, layer, i)], x=fields(draw, layer, i), with_adjoint=i % 3 == 1)


def matmul_cases():
    draw = Draw("matmul")
    for i in range(60):
        layer = random_matmul(draw, i)
        yield Case(f"matmul-{i}", layer, draw, [signs(draw, layer, i)], x=fields(draw, layer, i), with_adjoint=i % 3 == 1)


def wide_cases():
    """10 to 12 bits in two planes, as weight = low + high · 2^shift."""
    draw = Draw("wide")
    for i in range(30):
        layer = random_conv(draw, i) if i % 2 else random_matmul(draw, i)
        shift = draw.between(2, 7)
        high = [draw.between(-2 ** (11 - shift) + 1, 2 ** (11 - shift) - 1) if shift > 4 else draw.between(-127, 127)
                for _ in range(layer.weights)]
        low = [draw.between(-(2 ** (shift - 1)), 2 ** (shift - 1) - 1) for _ in range(layer.weights)]
        yield Case(f"wide-{i}", layer, draw, [low, high], shift, fields(draw, layer, i), with_adjoint=i % 4 == 0)


def long_cases():
    """Sums at and beyond what a 32-bit accumulator of 255 × 127 holds (66311 terms), of 255 × 128 (65793)."""
    draw = Draw("long")
    for inner in (65792, 65793, 65794, 66311, 66312, 66313, 100352):
        for weight in (127, -127, -128):
            for word in (2**32 - 1, P - 1):
                layer = MatMul("right", 1, 1, inner, 1)
                yield Case(f"long-{inner}-{weight}-{word:x}", layer, draw, [[weight] * inner], x=[word] * inner)
        layer = Conv(1, inner, 2, (1, 1), (1, 1))
        yield Case(f"long-conv-{inner}", layer, draw, [[127] * inner + [-127] * inner], x=[P - 1] * inner)


def forged(case, draw):
    """(name, answer): what a lying or broken worker could send instead."""
    y = case.answer
    rows, columns = case.layer.answer_shape
    n, at = len(y), draw.below(len(y))
    with_word = lambda i, w: [*y[:i], w, *y[i + 1:]]  # noqa: E731
    add = lambda i, d: (y[i] + d) % P  # noqa: E731
    yield "one-more", with_word(at, add(at, 1))
    yield "half-p", with_word(at, add(at, (P + 1) // 2))
    yield "one-bit", with_word(at, add(at, 1 << draw.below(30)))
    yield "last-word", with_word(n - 1, add(n - 1, P - 1))
    yield "all-zero", [0] * n
    yield "all-one-more", [(w + 1) % P for w in y]
    yield "negated", [-w % P for w in y]
    if columns > 1:
        d = 1 + draw.below(P - 1)
        yield "opposite-in-row", [(w + (d if i == 0 else -d if i == 1 else 0)) % P for i, w in enumerate(y)]
        yield "columns-reversed", [w for r in range(rows) for w in reversed(y[r * columns:(r + 1) * columns])]
    if rows > 1:
        d = 1 + draw.below(P - 1)
        yield "opposite-in-column", [(w + (d if i == 0 else -d if i == columns else 0)) % P for i, w in enumerate(y)]
        yield "channels-swapped", [*y[columns:2 * columns], *y[:columns], *y[2 * columns:]]
    yield "stale", apply(case.layer, combine(case.planes, case.shift), draw.field(case.layer.inputs))
    yield "other-weights", apply(case.layer, [-w for w in combine(case.planes, case.shift)], case.x)
    for name, word in (("p", P), ("p-plus", P + y[at]), ("all-ones", 2**32 - 1), ("top-bit", 2**31 | y[at])):
        yield f"non-canonical-{name}", with_word(at, word)
    yield "non-canonical-first-of-two", [P, *y[1:-1], P]
    yield "too-short", y[:-1]
    yield "too-long", [*y, 0]
    yield "empty", []
    yield "twice", y + y


def reject_cases():
    draw = Draw("reject")
    for layer in (Conv(1, 3, 4, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), MatMul("right", 1, 3, 9, 5),
                  Conv(6, 6, 6, (5, 4), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)), MatMul("left", 2, 4, 6, 3)):
        case = Case("", layer, draw, with_adjoint=True)
        kind = layer.text().split()[0]
        for name, answer in forged(case, draw):
            assert case.verdict(answer) != "accept", name
            case.name = f"{kind}-{layer.weights}-{name}"
            yield case, answer
    # A lie that the first repetition cannot see (the error is orthogonal to its v): the second one does.
    layer = MatMul("right", 1, 2, 5, 4)
    case = Case("seen-by-second-repetition", layer, draw)
    (outer, inner), _ = case.v
    error = [inner[1], -inner[0], 0, 0] + [0] * 4
    yield case, [(w + e) % P for w, e in zip(case.answer, error)]


BAD_SHAPES = [
    ("kernel-beyond-input", Conv(1, 1, 1, (2, 2), (3, 3))), ("dilation-beyond-input", Conv(1, 1, 1, (4, 4), (3, 3), dilation=(2, 2))),
    ("groups-do-not-divide-in", Conv(2, 3, 4, (3, 3), (1, 1))), ("groups-do-not-divide-out", Conv(2, 4, 3, (3, 3), (1, 1))),
    ("no-groups", Conv(0, 1, 1, (3, 3), (1, 1))), ("no-input-channel", Conv(1, 0, 1, (3, 3), (1, 1))),
    ("no-output-channel", Conv(1, 1, 0, (3, 3), (1, 1))), ("no-stride", Conv(1, 1, 1, (3, 3), (1, 1), (0, 1))),
    ("no-dilation", Conv(1, 1, 1, (3, 3), (1, 1), dilation=(1, 0))), ("empty-image", Conv(1, 1, 1, (0, 3), (1, 1))),
    ("empty-kernel", Conv(1, 1, 1, (3, 3), (0, 1))), ("no-rows", MatMul("right", 1, 0, 3, 3)),
    ("no-inner", MatMul("right", 1, 3, 0, 3)), ("no-columns", MatMul("right", 1, 3, 3, 0)),
    ("no-matmul-groups", MatMul("right", 0, 3, 3, 3)),
    ("sizes-overflow", MatMul("right", 1, 2**40, 2**40, 2**40)),
    ("image-overflow", Conv(1, 2**32, 1, (2**32, 2**32), (1, 1))),
]


def files():
    yield "conv.txt", [list(c.lines()) for c in conv_cases()]
    yield "matmul.txt", [list(c.lines()) for c in matmul_cases()]
    yield "wide.txt", [list(c.lines()) for c in wide_cases()]
    yield "long.txt", [list(c.lines()) for c in long_cases()]
    yield "reject.txt", [list(c.lines(answer)) for c, answer in reject_cases()]
    yield "shapes.txt", [["expect: reject shape", f"case: {n}", f"layer: {layer.text()}"] for n, layer in BAD_SHAPES]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("action", choices=["vectors", "check"])
    action = parser.parse_args().action
    stale = []
    for name, cases in files():
        text = HEADER + "\n" + "\n\n".join("\n".join(lines) for lines in cases) + "\n"
        path = VECTORS / name
        if action == "vectors":
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
        print(f"{name}: {len(cases)} cases, {len(text)} bytes")
    if stale:
        print(f"error: {', '.join(stale)} differ from what this script writes; run scripts/oracle.py vectors", file=sys.stderr)
    return 2 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
