#!/usr/bin/env python3
"""The trusted side's CPU time against ONNX Runtime on one thread, as the table of docs/performance.md.

    cargo build --release --workspace
    python3 scripts/trusted.py [--larvatus target/release/larvatus] [--rounds 3] [--runs 6] [--models vgg16,…]

In every round ONNX Runtime and `larvatus bench` (worker on one thread, shared memory) take turns on each model;
every figure is the median of the rounds, and ratios are taken within a round before the median. Milliseconds of
CPU, system time included, for one inference. MODELS are names in the cache's catalogue.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools.cache import Cache, FetchError, default_dir, fail  # noqa: E402

MODELS = "vgg16,resnet50,resnet101,resnet152,vit-b16,bert-base,mobilenetv1,mobilenetv2"
MODES = ["local", "clear", "+hide", "+check", "+both"]


def output(command) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise FetchError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-400:]}")
    return done.stdout


def round_of(args, path: Path) -> dict:
    here = Path(__file__).resolve().parent
    ort = json.loads(output([sys.executable, here / "ort_cpu.py", path, "--threads", "1", "--runs", str(args.runs)]))
    rows = json.loads(output([args.larvatus, "bench", path, "--runs", str(args.runs), "--json"]))
    found = {"ort": ort["cpu_ms"]["median"]}
    for row in rows:
        found[row["mode"]] = row["trusted_cpu_ms"]
        if row["mode"] == "+both":
            found["offline"], found["p50"] = row["offline_cpu_ms"], row["latency_p50_ms"]
    for mode in MODES:
        found[f"ort/{mode}"] = found["ort"] / found[mode]
    return found


def median(values):
    return sorted(values)[len(values) // 2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--larvatus", default="target/release/larvatus")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=6)
    args = parser.parse_args()
    try:
        cache = Cache(default_dir())
        entries = cache.catalogue()
        print("| model | ONNX Runtime | local | clear | +hide | +check | +both | offline "
              "| ORT ÷ +check | ORT ÷ +hide | ORT ÷ +both |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for name in args.models.split(","):
            if name not in entries:
                raise FetchError(f"{name} is not in {cache.models}/models.json; run scripts/fetch.py all")
            path = cache.root / entries[name]["path"]
            rounds = [round_of(args, path) for _ in range(args.rounds)]
            of = lambda key: median([found[key] for found in rounds])  # noqa: E731
            times = [f"{of(key):.1f}" for key in ["ort", *MODES, "offline"]]
            ratios = [f"{of(key):.1f}" for key in ["ort/+check", "ort/+hide", "ort/+both"]]
            print(f"| {name} | {' | '.join(times + ratios)} |", flush=True)
        return 0
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
