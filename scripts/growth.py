#!/usr/bin/env python3
"""How the trusted side's CPU time grows with image size, batch and depth.

    cargo build --release --workspace
    python3 scripts/growth.py [--larvatus target/release/larvatus] [--rounds 3] [--runs 10]

Each line is `larvatus bench` of one model and shape (worker on one thread, shared memory, one inference at a time), the
median of the rounds: milliseconds of CPU of the trusted side, and nanoseconds for each element that crosses the link
either way in `+both`. Sizes and batches are those of models that leave them open; depth is that of one family.
"""
import argparse
import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools.cache import Cache, FetchError, default_dir, fail  # noqa: E402
from trusted import median, output  # noqa: E402

MODES = ["clear", "+check", "+both"]
CASES = [("image size", "ppocr-det", f"{side}×{side}", [f"x=1x3x{side}x{side}"]) for side in (160, 320, 640)] \
    + [("batch", "ppocr-cls", str(batch), [f"x={batch}x3x48x192"]) for batch in (1, 2, 4, 8, 16)] \
    + [("depth", f"resnet{depth}", str(depth), []) for depth in (18, 50, 101, 152)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--larvatus", default="target/release/larvatus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    try:
        cache = Cache(default_dir())
        entries = cache.catalogue()
        print("| grows | model | at | clear ms | +check ms | +both ms | million elements | +both ns/element | round trips |")
        print("|" + "---|" * 9)
        for grows, name, at, shapes in CASES:
            if name not in entries:
                raise FetchError(f"{name} is not in {cache.models}/models.json; run scripts/fetch.py all")
            command = [args.larvatus, "bench", cache.root / entries[name]["path"], "--runs", str(args.runs), "--json"]
            command += [part for mode in MODES for part in ("--mode", mode)]
            command += [part for shape in shapes for part in ("--shape", shape)]
            rounds = [{row["mode"]: row for row in json.loads(output(command))} for _ in range(args.rounds)]
            times = [median([found[mode]["trusted_cpu_ms"] for found in rounds]) for mode in MODES]
            moved, trips = rounds[0]["+both"]["bytes"], rounds[0]["+both"]["round_trips"]
            elements = (moved["up"] + moved["down"]) / 4
            cells = [*(f"{time:.2f}" for time in times), f"{elements / 1e6:.2f}", f"{1e6 * times[-1] / elements:.2f}", str(trips)]
            print(f"| {grows} | {name} | {at} | {' | '.join(cells)} |", flush=True)
        return 0
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
