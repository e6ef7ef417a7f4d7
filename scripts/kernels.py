#!/usr/bin/env python3
"""Times the exact kernels against float ones on the same layers: ONNX Runtime, OpenBLAS (numpy) and tract.

    cargo build --release --workspace
    python3 scripts/kernels.py [--filter WORD] [--threads 2] [--json] [--cache DIR]

Every layer is a graph of one operator with constant weights. All kinds run in turn, layer by layer: process CPU
time (least of several) with one thread, wall time with more. OpenBLAS multiplies the im2col matrix of a
convolution, which it gets for nothing. Figures are 10⁹ operations a second, counting 2 for each multiplication of
the plain algorithm; ratios are exact ÷ float, above 1 where exact is faster.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import environment  # noqa: E402
from tools.cache import FetchError, fail  # noqa: E402

BINARY = Path(__file__).resolve().parent.parent / "target" / "release" / "kernels"


def conv(name, channels, side, kernel=3, stride=1, groups=1, pad=None, batch=1):
    pad = kernel // 2 if pad is None else pad
    return {"name": name, "batch": batch, "conv": {"groups": groups, "channels": list(channels), "side": side,
                                                   "kernel": kernel, "stride": stride, "pad": pad}}


def matmul(name, rows, inner, columns, batch=1):
    return {"name": name, "batch": batch, "matmul": [rows, inner, columns]}


LAYERS = [
    matmul("product 512×512×512", 512, 512, 512),
    matmul("ViT-B 197×768×768", 197, 768, 768),
    matmul("ViT-B 197×768×3072", 197, 768, 3072),
    matmul("ViT-B 197×3072×768", 197, 3072, 768),
    conv("ViT-B patches 16×16/16", (3, 768), 224, 16, 16, pad=0),
    conv("VGG16 3→64 3×3 @224", (3, 64), 224),
    conv("VGG16 64→64 3×3 @224", (64, 64), 224),
    conv("VGG16 64→128 3×3 @112", (64, 128), 112),
    conv("VGG16 128→128 3×3 @112", (128, 128), 112),
    conv("VGG16 256→256 3×3 @56", (256, 256), 56),
    conv("VGG16 512→512 3×3 @28", (512, 512), 28),
    conv("VGG16 512→512 3×3 @14", (512, 512), 14),
    conv("ResNet-50 3→64 7×7/2 @224", (3, 64), 224, 7, 2),
    conv("ResNet-50 64→64 3×3 @56", (64, 64), 56),
    conv("ResNet-50 64→256 1×1 @56", (64, 256), 56, 1),
    conv("ResNet-50 256→64 1×1 @56", (256, 64), 56, 1),
    conv("ResNet-50 128→128 3×3/2 @56", (128, 128), 56, 3, 2),
    conv("ResNet-50 128→128 3×3 @28", (128, 128), 28),
    conv("ResNet-50 512→128 1×1 @28", (512, 128), 28, 1),
    conv("ResNet-50 256→256 3×3 @14", (256, 256), 14),
    conv("ResNet-50 1024→256 1×1 @14", (1024, 256), 14, 1),
    conv("ResNet-50 512→512 3×3 @7", (512, 512), 7),
    conv("ResNet-50 2048→512 1×1 @7", (2048, 512), 7, 1),
    conv("ResNet-50 512→2048 1×1 @7", (512, 2048), 7, 1),
    conv("depthwise 32 3×3 @112", (32, 32), 112, groups=32),
    conv("depthwise 96 3×3/2 @112", (96, 96), 112, 3, 2, groups=96),
    conv("depthwise 512 3×3 @14", (512, 512), 14, groups=512),
    conv("depthwise 960 3×3 @7", (960, 960), 7, groups=960),
    conv("depthwise 240 5×5 @28", (240, 240), 28, 5, groups=240),
    *(matmul(f"VGG16 {n}×25088×4096", 1, 25088, 4096, batch=n) for n in (1, 2, 4, 8)),
    *(conv(f"{n} × 512→512 3×3 @7", (512, 512), 7, batch=n) for n in (2, 4, 16)),
    *(conv(f"{n} × 512→512 3×3 @14", (512, 512), 14, batch=n) for n in (2, 4)),
]


def sizes(layer):
    """(input shape, weight shape, rows, inner, columns) of the float layer and its product."""
    n = layer["batch"]
    if "matmul" in layer:
        rows, inner, columns = layer["matmul"]
        return (n * rows, inner), (inner, columns), n * rows, inner, columns
    c = layer["conv"]
    out = (c["side"] + 2 * c["pad"] - c["kernel"]) // c["stride"] + 1
    inner = c["channels"][0] // c["groups"] * c["kernel"] ** 2
    weight = (c["channels"][1], c["channels"][0] // c["groups"], c["kernel"], c["kernel"])
    return (n, c["channels"][0], c["side"], c["side"]), weight, c["channels"][1], inner, n * out * out


def write_graph(layer, path: Path) -> None:
    import numpy as np
    from tools.graph import Graph
    x, w, rows, _, columns = sizes(layer)
    side = round((columns / layer["batch"]) ** 0.5)
    y = (rows, columns) if "matmul" in layer else (layer["batch"], rows, side, side)
    weight = np.random.default_rng(1).standard_normal(w, np.float32)
    g = Graph("layer")
    x = g.input("x", x)
    if "matmul" in layer:
        g.op("MatMul", [x, g.constant(weight, "w")], "y")
    else:
        c = layer["conv"]
        g.conv(x, weight, None, "y", c["stride"], (c["pad"],) * 4, c["groups"])
    g.output("y", y)
    g.save(path)


def least(threads: int, work) -> float:
    """Seconds: process CPU time with one thread, wall time with more."""
    clock = time.CLOCK_PROCESS_CPUTIME_ID if threads == 1 else time.CLOCK_MONOTONIC
    best, start, rounds = float("inf"), time.monotonic(), 0
    while rounds < 5 or time.monotonic() - start < 0.4:
        begin = time.clock_gettime(clock)
        work()
        best, rounds = min(best, time.clock_gettime(clock) - begin), rounds + 1
    return best


def float_times(layer, onnx: Path, threads: int) -> dict:
    import numpy as np
    from tools.graph import session
    x, _, rows, inner, columns = sizes(layer)
    rng = np.random.default_rng(2)
    run, inputs = session(onnx, threads), {"x": rng.standard_normal(x, np.float32)}
    times = {"ort": least(threads, lambda: run.run(None, inputs))}
    if layer.get("conv", {}).get("groups", 1) == 1:
        a, b = rng.standard_normal((rows, inner), np.float32), rng.standard_normal((inner, columns), np.float32)
        out = np.empty((rows, columns), np.float32)
        times["openblas"] = least(threads, lambda: np.matmul(a, b, out=out))
    return times


def blas_child(args) -> None:
    """Float times of one layer with a number of threads, as JSON: OpenBLAS fixes its threads when it is loaded."""
    layer = next(layer for layer in LAYERS if layer["name"] == args.child)
    print(json.dumps(float_times(layer, Path(args.onnx), args.threads)))


def measure(args) -> list:
    if not BINARY.exists():
        raise FetchError(f"{BINARY} is missing; run cargo build --release --workspace")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layer in LAYERS:
            if args.filter and args.filter not in layer["name"]:
                continue
            onnx = Path(folder) / "layer.onnx"
            write_graph(layer, onnx)
            described = Path(folder) / "layers.json"
            described.write_text(json.dumps([{"conv": None, "matmul": None, **layer, "onnx": onnx.name}]))
            ours = subprocess.run([BINARY, described, str(args.threads)], capture_output=True, text=True)
            if ours.returncode:
                raise FetchError(f"{layer['name']}: {ours.stderr.strip()}")
            _, _, m, k, n = sizes(layer)
            for line in ours.stdout.splitlines():
                times = json.loads(line)
                child = [sys.executable, __file__, "--child", layer["name"], "--onnx", str(onnx),
                         "--threads", str(times["threads"])]
                env = {**os.environ, "OPENBLAS_NUM_THREADS": str(times["threads"])}
                times.update(json.loads(subprocess.run(child, env=env, capture_output=True, text=True, check=True).stdout))
                if layer.get("conv", {}).get("groups", 1) > 1:
                    times["short"] = None
                rows.append({**times, "gigaops": 2 * m * k * n / 1e9})
                if not args.json:
                    show(rows[-1])
    return rows


def show(row: dict) -> None:
    rate = lambda kind: f"{row['gigaops'] / row[kind]:.0f}" if row.get(kind) else "–"  # noqa: E731
    ratio = lambda kind: f"{row[kind] / row['exact']:.2f}" if row.get(kind) else "–"  # noqa: E731
    cells = [row["name"], str(row["threads"]), f"{row['exact'] * 1e3:.3f}", rate("exact"), rate("short"), rate("ort"),
             rate("openblas"), rate("tract"), ratio("ort"), ratio("openblas"), ratio("tract")]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--filter", help="only layers whose name holds this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--onnx", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cache:
        os.environ["LARVATUS_CACHE"] = str(args.cache.resolve())
    if args.threads < 1:
        parser.error("--threads needs at least 1")
    try:
        environment.enter()
        if args.child:
            blas_child(args)
            return 0
        if not args.json:
            print("| layer | threads | exact ms | exact | short | ONNX Runtime | OpenBLAS | tract "
                  "| ÷ ONNX Runtime | ÷ OpenBLAS | ÷ tract |")
            print("|---|---|---|---|---|---|---|---|---|---|---|")
        rows = measure(args)
        if args.json:
            print(json.dumps(rows, indent=1))
        return 0
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
