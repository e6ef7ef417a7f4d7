#!/usr/bin/env python3
"""The trusted side's CPU time against ONNX Runtime on one thread, as the table of docs/performance.md.

    cargo build --release --workspace
    python3 scripts/trusted.py [--larvatus target/release/larvatus] [--rounds 3] [--runs 6] [--models vgg16,…]
                               [--window 1,16] [--memory]

In every round ONNX Runtime and `larvatus bench` (worker on one thread, shared memory) take turns on each model;
every figure is the median of the rounds, and ratios are taken within a round before the median. Milliseconds of
CPU, system time included, for one inference. MODELS are names in the cache's catalogue.

With --window a second table says how many inferences a second come through with so many in flight, their tickets made
beforehand, what each takes of the CPU of both sides then, and how much of the wall time the trusted side only waits.
With --memory a third says what the trusted side held in `+both`, one inference at a time.
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
    window = ["--window", args.window] if args.window else []
    rows = json.loads(output([args.larvatus, "bench", path, "--runs", str(args.runs), *window, "--json"]))
    found = {"ort": ort["cpu_ms"]["median"], "ort/s": 1e3 / ort["wall_ms"]["median"]}
    for row in rows:
        for one in row.get("throughput", []):
            for key in ["per_second", "trusted_cpu_ms", "worker_cpu_ms", "idle"]:
                found[row["mode"], one["window"], key] = one[key]
        for key, value in row["memory"].items():
            found[row["mode"], "memory", key] = value or 0
        found[row["mode"]] = row["trusted_cpu_ms"]
        if row["mode"] == "+both":
            found["offline"], found["p50"] = row["offline_cpu_ms"], row["latency_p50_ms"]
    for mode in MODES:
        found[f"ort/{mode}"] = found["ort"] / found[mode]
    return found


def median(values):
    return sorted(values)[len(values) // 2]


def throughput(windows, name, of):
    """Rows of the second table."""
    for mode in MODES[1:]:
        cells = [f"{of((mode, window, 'per_second')):.1f} | {of((mode, window, 'trusted_cpu_ms')):.1f} "
                 f"| {of((mode, window, 'worker_cpu_ms')):.1f} | {100 * of((mode, window, 'idle')):.0f} %"
                 for window in windows]
        yield f"| {name} | {mode} | {' | '.join(cells)} | {of('ort/s'):.1f} |"


def memory(name, of):
    """The row of the third table: MiB."""
    keys = ["peak_resident", "checks", "tickets", "activations", "largest_round",
            "weights_integers", "weights_engine"]
    sizes = [f"{of(('+both', 'memory', key)) / 2**20:.1f}" for key in keys]
    return f"| {name} | {' | '.join(sizes)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--larvatus", default="target/release/larvatus")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--window", help="inferences in flight, such as 1,16")
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    try:
        cache = Cache(default_dir())
        entries = cache.catalogue()
        windows = [int(window) for window in (args.window or "").split(",") if window]
        flows, memories = [], []
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
            flows += throughput(windows, name, of) if windows else []
            memories.append(memory(name, of))
        if flows:
            heads = [f"{window}: a second | trusted CPU | worker CPU | waits" for window in windows]
            print(f"\n| model | mode | {' | '.join(heads)} | ONNX Runtime a second |")
            print("\n".join(["|" + "---|" * (3 + 4 * len(windows)), *flows]))
        if args.memory:
            print("\n| model | peak resident MiB | check vectors | u of tickets | activations | largest round "
                  "| upload | integers | for u |")
            print("\n".join(["|" + "---|" * 9, *memories]))
        return 0
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
