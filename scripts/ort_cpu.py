#!/usr/bin/env python3
"""What ONNX Runtime needs for one inference: process CPU time (user + system) and wall time, as JSON.

    python3 scripts/ort_cpu.py MODEL [--threads 1] [--runs 20] [--warmup 3] [--int8] [--cache DIR]

MODEL is an .onnx file or a name in the cache's models.json. The inputs are the samples of the catalogue
where it has the model; otherwise seeded random numbers (ones for integers), open dimensions set to 1.
Thread spinning is off, so that idle threads do not count as work. With --int8 the model is quantised first by ONNX Runtime's own
tool: static, QDQ, weights int8 by channel, activations uint8 calibrated on the same inputs.
"""
import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import environment  # noqa: E402
from tools.cache import Cache, FetchError, default_dir, fail  # noqa: E402


def cpu_seconds() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def made_up(run) -> dict:
    import numpy as np
    rng, out = np.random.default_rng(1), {}
    for i in run.get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in i.shape]
        if i.type == "tensor(float)":
            out[i.name] = rng.standard_normal(shape, np.float32)
        elif i.type in ("tensor(int64)", "tensor(int32)", "tensor(bool)"):
            out[i.name] = np.ones(shape, {"tensor(int64)": np.int64, "tensor(int32)": np.int32}.get(i.type, bool))
        else:
            raise FetchError(f"input {i.name} has type {i.type}, which this script cannot make up")
    return out


class Inputs:
    """What ONNX Runtime's calibration reads: one set of inputs, then nothing."""

    def __init__(self, inputs):
        self.left = [inputs]

    def get_next(self):
        return self.left.pop() if self.left else None


def quantised(path: Path, inputs, folder: str) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    out = Path(folder) / "int8.onnx"
    quantize_static(path, out, Inputs(inputs), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    return out


def measure(args) -> dict:
    import onnxruntime
    from tools import catalogue
    from tools.graph import session
    cache = Cache(default_dir())
    entries = cache.catalogue()
    path = Path(args.model)
    if args.model in entries:
        path = cache.root / entries[args.model]["path"]
    if not path.exists():
        raise FetchError(f"{args.model} is neither a file nor in {cache.models}/models.json; run scripts/fetch.py first")
    known = [e for e in entries.values() if (cache.root / e["path"]).resolve() == path.resolve()]
    run = session(path, args.threads)
    inputs = catalogue.inputs_of(cache, known[0], 1)[0] if known else made_up(run)
    if args.int8:
        with tempfile.TemporaryDirectory() as folder:
            run = session(quantised(path, inputs, folder), args.threads)
    for _ in range(args.warmup):
        run.run(None, inputs)
    walls, cpus = [], []
    for _ in range(args.runs):
        cpu, wall = cpu_seconds(), time.perf_counter()
        run.run(None, inputs)
        walls.append((time.perf_counter() - wall) * 1e3)
        cpus.append((cpu_seconds() - cpu) * 1e3)
    middle = lambda v: round(sorted(v)[len(v) // 2], 3)  # noqa: E731
    return {
        "model": str(path), "threads": args.threads, "runs": args.runs, "onnxruntime": onnxruntime.__version__,
        "samples": "catalogue" if known else "made up",
        "wall_ms": {"min": round(min(walls), 3), "median": middle(walls)},
        "cpu_ms": {"min": round(min(cpus), 3), "median": middle(cpus)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if args.cache:
        os.environ["LARVATUS_CACHE"] = str(args.cache.resolve())
    if args.threads < 1 or args.runs < 1:
        parser.error("--threads and --runs need at least 1")
    try:
        environment.enter()
        print(json.dumps(measure(args)))
        return 0
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
