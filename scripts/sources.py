#!/usr/bin/env python3
"""What the trusted side's CPU time is by where u comes from, against ONNX Runtime on one thread.

    cargo build --release --workspace
    python3 scripts/sources.py [--larvatus target/release/larvatus] [--rounds 3] [--runs 10] [--models vgg16,resnet50]

Three runs of `larvatus bench` take turns with ONNX Runtime: u made by the trusted side before each inference, or read
from a store (`larvatus provision`, the worker over shared memory in both); u from a dealer, with worker and dealer each over
TLS on this machine, where `+both` over the same TLS link stands beside it. Milliseconds of CPU, system time included:
medians of the rounds, ratios within a round first. MODELS are names in the cache's catalogue.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from tools.cache import Cache, FetchError, default_dir, fail  # noqa: E402
from trusted import median, output  # noqa: E402

# Inferences that `larvatus bench` runs before those that it measures.
WARM_UP = 3
HEADS = ["own u, online", "offline", "stored u, online", "TLS, own u: online", "offline", "TLS, dealer: online", "offline"]


class Server:
    """A worker or a dealer over TLS, stopped at the end."""

    def __init__(self, larvatus, role, folder):
        command = [larvatus, role, "--listen", "tls://127.0.0.1:0", "--identity", folder / role, "--threads", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = self.process.stdout.readline()
        self.address = next((word.rstrip(":") for word in line.split() if word.startswith("tls://")), None)
        if not self.address:
            raise FetchError(f"larvatus {role}: {line.strip()}")

    def __enter__(self):
        return self.address

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def rows(larvatus, path, *more):
    found = json.loads(output([larvatus, "bench", path, *more, "--json"]))
    return {row["mode"]: (row["trusted_cpu_ms"], row["offline_cpu_ms"]) for row in found}


def round_of(args, path, folder, worker, dealer):
    ort = json.loads(output([sys.executable, HERE / "ort_cpu.py", path, "--threads", "1", "--runs", str(args.runs)]))
    store = folder / f"store-{path.stem}"
    tickets = str(args.runs + WARM_UP)
    output([args.larvatus, "provision", path, "--tickets", tickets, "--store", store])
    common = ["--runs", str(args.runs), "--mode", "+both"]
    here = rows(args.larvatus, path, *common, "--store", store)
    tls = rows(args.larvatus, path, *common, "--worker", worker, "--dealer", dealer, "--identity", folder / "device")
    found = [*here["+both"], here["+both, stored u"][0], *tls["+both"], *tls["+both, dealer"]]
    return [ort["cpu_ms"]["median"], *found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--larvatus", default="target/release/larvatus")
    parser.add_argument("--models", default="vgg16,resnet50,mobilenetv1,vit-b16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    try:
        cache = Cache(default_dir())
        entries = cache.catalogue()
        ratios = ["own u", "stored u", "dealer", "dealer, all of the device's work"]
        print(f"| model | ONNX Runtime | {' | '.join(HEADS)} | {' | '.join('ORT ÷ ' + one for one in ratios)} |")
        print("|" + "---|" * (2 + len(HEADS) + len(ratios)))
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            with Server(args.larvatus, "worker", folder) as worker, Server(args.larvatus, "dealer", folder) as dealer:
                for name in args.models.split(","):
                    if name not in entries:
                        raise FetchError(f"{name} is not in {cache.models}/models.json; run scripts/fetch.py all")
                    path = cache.root / entries[name]["path"]
                    rounds = [round_of(args, path, folder, worker, dealer) for _ in range(args.rounds)]
                    times = [f"{median(column):.1f}" for column in zip(*rounds)]
                    of = [(r[0] / r[1], r[0] / r[3], r[0] / r[6], r[0] / (r[6] + r[7])) for r in rounds]
                    print(f"| {name} | {' | '.join(times + [f'{median(column):.1f}' for column in zip(*of)])} |", flush=True)
        return 0
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
