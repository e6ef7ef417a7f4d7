#!/usr/bin/env python3
"""Writes one ONNX model for each local operator that the benches time, and times ONNX Runtime on them.

    python3 scripts/operators.py [--runs 50] [--cache DIR]

The models go to `operators/` in the cache, where `target/release/segments` measures the same cases here. Printed is,
for each, the least and the median CPU time of ONNX Runtime on one thread, in milliseconds. Inputs are seeded.
"""
import argparse
import os
import resource
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import environment  # noqa: E402
from tools.cache import Cache, FetchError, default_dir, fail  # noqa: E402


def cases():
    """Pairs of a name and a graph."""
    import numpy as np
    from tools.graph import Graph
    rng = np.random.default_rng(1)

    def one(name, shape, body, out):
        graph = Graph(name)
        graph.rename(body(graph, graph.input("x", shape)), "y")
        graph.output("y", out)
        return name, graph

    for c, side in ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14)):
        yield one(f"maxpool-2x2-{c}-{side}", (1, c, side, side), lambda g, x: g.op(
            "MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2]), (1, c, side // 2, side // 2))
    yield one("maxpool-3x3-64-112", (1, 64, 112, 112), lambda g, x: g.op(
        "MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), (1, 64, 56, 56))
    yield one("average-2048-7", (1, 2048, 7, 7), lambda g, x: g.op("GlobalAveragePool", [x]), (1, 2048, 1, 1))
    yield one("softmax-12-197-197", (12, 197, 197), lambda g, x: g.op("Softmax", [x], axis=-1), (12, 197, 197))
    yield one("layernorm-197-768", (1, 197, 768), lambda g, x: g.op("LayerNormalization", [
        x, g.constant(rng.standard_normal(768, np.float32), "gamma"),
        g.constant(rng.standard_normal(768, np.float32), "beta")], axis=-1, epsilon=1e-6), (1, 197, 768))

    def gelu(g, x):
        c = lambda v, n: g.constant(np.float32(v), n)  # noqa: E731
        half = g.op("Mul", [x, c(0.5, "half")])
        erf = g.op("Erf", [g.op("Mul", [x, c(2 ** -0.5, "root")])])
        return g.op("Mul", [half, g.op("Add", [erf, c(1, "one")])])

    yield one("gelu-64-3072", (64, 3072), gelu, (64, 3072))
    yield one("sigmoid-64-3072", (64, 3072), lambda g, x: g.op("Sigmoid", [x]), (64, 3072))
    yield one("hardswish-64-3072", (64, 3072), lambda g, x: g.op("HardSwish", [x]), (64, 3072))

    def residual(g, x):
        other = g.input("other", (1, 256, 56, 56))
        return g.op("Relu", [g.op("Add", [x, other])])

    yield one("residual-256-56", (1, 256, 56, 56), residual, (1, 256, 56, 56))

    for heads, tokens, depth in ((12, 197, 64), (12, 128, 64), (12, 64, 32)):
        def attention(g, x):
            parts = [x] + [g.input(n, (1, tokens, heads * depth)) for n in ("k", "v")]
            shape = g.constant(np.array([1, tokens, heads, depth]), "split")
            q, k, v = (g.op("Transpose", [g.op("Reshape", [p, shape])], perm=perm)
                       for p, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])))
            scores = g.op("Mul", [g.op("MatMul", [q, k]), g.constant(np.float32(depth ** -0.5), "scale")])
            mixed = g.op("Transpose", [g.op("MatMul", [g.op("Softmax", [scores], axis=-1), v])], perm=[0, 2, 1, 3])
            return g.op("Reshape", [mixed, g.constant(np.array([1, tokens, heads * depth]), "join")])
        size = (1, tokens, heads * depth)
        yield one(f"attention-{heads}-{tokens}-{depth}", size, attention, size)

    for c, side, kernel, stride in ((32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (512, 14, 3, 1),
                                    (960, 7, 3, 1), (240, 28, 5, 1), (240, 28, 5, 2)):
        def depthwise(g, x):
            return g.conv(x, rng.standard_normal((c, 1, kernel, kernel)), rng.standard_normal(c), "conv", stride,
                          [kernel // 2] * 4, c)
        yield one(f"depthwise-{kernel}x{kernel}-{stride}-{c}-{side}", (1, c, side, side), depthwise,
                  (1, c, side // stride, side // stride))


def cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return (use.ru_utime + use.ru_stime) * 1e3


def measure(path: Path, runs: int):
    """Least and median CPU milliseconds; short ones are repeated, since the clock is coarse."""
    import numpy as np
    from tools.graph import session
    run, rng = session(path), np.random.default_rng(2)
    inputs = {i.name: rng.standard_normal(i.shape, np.float32) for i in run.get_inputs()}
    run.run(None, inputs)
    start = cpu()
    for _ in range(5):
        run.run(None, inputs)
    repeat = max(1, int(5 / max(0.001, (cpu() - start) / 5)))
    times = []
    for _ in range(runs):
        start = cpu()
        for _ in range(repeat):
            run.run(None, inputs)
        times.append((cpu() - start) / repeat)
    times.sort()
    return times[0], times[len(times) // 2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if args.cache:
        os.environ["LARVATUS_CACHE"] = str(args.cache.resolve())
    if args.runs < 1:
        parser.error("--runs needs at least 1")
    try:
        environment.enter()
        folder = Cache(default_dir()).root / "operators"
        folder.mkdir(exist_ok=True)
        for name, graph in cases():
            path = folder / f"{name}.onnx"
            graph.save(path)
            least, median = measure(path, args.runs)
            print(f"{name:32} {least:8.4f} {median:8.4f}", flush=True)
        return 0
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
