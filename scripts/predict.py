#!/usr/bin/env python3
"""How well the plan predicts: `larvatus calibrate` and `plan --rates` against `larvatus bench`.

    cargo build --release --workspace
    python3 scripts/predict.py [--larvatus target/release/larvatus] [--runs 10] [--models vgg16,…] [--links shm,unix,home]

A worker on one thread over shared memory, a Unix socket and a shaped TCP link (`home`: 300 Mb/s, 5 ms each way). For each
link: rates are measured once; each model's p50 latency and trusted CPU are predicted from them and measured. *Paying* is what
`offload = "paying"` decides with these rates (layers that go, of all that could), *local* the float network here, measured.
"""
import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from tools.cache import Cache, FetchError, default_dir, fail  # noqa: E402
from trusted import output  # noqa: E402

NAMES = {"shm": "shared memory", "unix": "Unix socket", "home": "300 Mb/s, 5 ms"}
POLICY = 'offload = "paying"\n'


@contextlib.contextmanager
def running(*commands):
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    try:
        time.sleep(1.0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def worker(larvatus, link, folder):
    """The address of a worker over that link."""
    listen = {"shm": f"shm:{folder}/worker", "unix": f"unix:{folder}/worker", "home": "tcp://127.0.0.1:17701"}[link]
    commands = [[larvatus, "worker", "--listen", listen, "--threads", "1"]]
    if link == "home":
        shaper = ["17702", "127.0.0.1:17701", "--mbit", "300", "--delay-ms", "5"]
        commands.append([sys.executable, HERE / "shape.py", *shaper])
        listen = "tcp://127.0.0.1:17702"
    with running(*commands):
        yield listen


def line(args, path, link, address, rates, policy):
    plan = [args.larvatus, "plan", path, "--rates", rates, "--json"]
    all_away = json.loads(output(plan))
    paying = json.loads(output([*plan, "--policy", policy]))
    gone = sum(row["placement"] == "worker" for row in paying["layers"])
    could = sum(row["placement"] == "worker" for row in all_away["layers"])
    runs = 3 if link == "home" else args.runs
    bench = output([args.larvatus, "bench", path, "--runs", str(runs), "--mode", "local", "--mode", "+both",
                    "--worker", address, "--json"])
    found = {row["mode"]: row for row in json.loads(bench)}
    said, both, local = all_away["predicted"], found["+both"], found["local"]["latency_p50_ms"]
    off = said["latency_p50_ms"] / both["latency_p50_ms"] - 1
    off = f"**{100 * off:+.0f} %**" if abs(off) > 0.25 else f"{100 * off:+.0f} %"
    return (f"{said['latency_p50_ms']:.1f} | {both['latency_p50_ms']:.1f} | {off} | {said['trusted_cpu_ms']:.1f} "
            f"| {both['trusted_cpu_ms']:.1f} | {said['local_ms']:.0f} | {local:.0f} | {gone} of {could}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--larvatus", default="target/release/larvatus")
    parser.add_argument("--models", default="vgg16,resnet50,mobilenetv1,mobilenetv2,efficientnet-lite0,vit-b16")
    parser.add_argument("--links", default="shm,unix,home")
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    try:
        cache = Cache(default_dir())
        entries = cache.catalogue()
        print("| link | model | predicted ms | measured | off | CPU predicted | CPU measured | local predicted | local | paying |")
        print("|" + "---|" * 10)
        for link in args.links.split(","):
            with tempfile.TemporaryDirectory() as folder, worker(args.larvatus, link, folder) as address:
                rates, policy = Path(folder) / "rates.toml", Path(folder) / "policy.toml"
                policy.write_text(POLICY)
                output([args.larvatus, "calibrate", "--worker", address, "--output", rates])
                for name in args.models.split(","):
                    if name not in entries:
                        raise FetchError(f"{name} is not in {cache.models}/models.json; run scripts/fetch.py all")
                    path = cache.root / entries[name]["path"]
                    print(f"| {NAMES[link]} | {name} | {line(args, path, link, address, rates, policy)} |", flush=True)
        return 0
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
