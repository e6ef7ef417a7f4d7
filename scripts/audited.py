#!/usr/bin/env python3
"""What whole networks cost that are audited later: latency, audits, evidence, judging.

For each model: inferences on photographs with `--preset whole-audited` over shared memory, one at a time; their audits, at a part of
the units, by another process; then inferences at workers that compute one element of a tensor wrong (testkit's `crooked`), audited in full, and
the evidence judged several times. Medians; of several pieces of evidence the largest and slowest. Worker and trusted side share this
machine.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

CACHE = pathlib.Path(os.environ.get("LARVATUS_CACHE", ".cache"))


def call(command, code=0):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout


class Served:
    """A worker process; its first line is `told`."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.told = self.process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def lie(args, model, place, run, keys, photograph, tensor):
    """Bytes of the evidence of one wrong element of a tensor, of the receipt, and times to judge it: inside, with its process."""
    place.mkdir()
    crooked, records = place / "crooked", place / "records"
    with Served([args.crooked, f"unix:{crooked}", str(tensor), "0"]) as wrong:
        call([*run, "--image", photograph, "--audit", "1", "--audit-dir", records, "--worker", f"shm:{crooked}"])
        call([args.larvatus, "audit", records, "--json", *keys, "--worker", f"shm:{crooked}"], code=1)
    evidence = records / "00000000.evidence"
    inside, outside = [], []
    for _ in range(args.judges):
        started = time.monotonic()
        judged = call([args.larvatus, "judge", evidence, "--worker-key", wrong.told, "--json"])
        outside.append(1e3 * (time.monotonic() - started))
        inside.append(judged["ms"])
    for told in judged["discloses"]:
        print(f"    {model}, tensor {tensor}: {told['bytes']} of {told['of']} bytes of {told['name']}", file=sys.stderr)
    receipt = next(records.glob("*.receipt")).stat().st_size
    return evidence.stat().st_size, receipt, statistics.median(inside), statistics.median(outside)


def row(args, model, photographs):
    path = CACHE / "models" / f"{model}.onnx"
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        keys = ["--receipt-key", place / "receipt.key"]
        run = [args.larvatus, "run", path, "--preset", "whole-audited", "--json", "--window", "1", *keys]
        inputs = ["--image", *photographs, "--audit", str(args.part)]
        socket = place / "worker"
        serve = ["worker", "--listen", f"unix:{socket}", "--threads", str(args.threads), "--receipt-key", place / "worker.key"]
        with Served([args.larvatus, *serve]):
            records = place / "records"
            report = call([*run, *inputs, "--audit-dir", records, "--worker", f"shm:{socket}"])
            started = time.monotonic()
            audited = call([args.larvatus, "audit", records, "--json", *keys, "--worker", f"shm:{socket}"])
            process = time.monotonic() - started
        # The first pays for pages that are not there yet.
        latency = [one["wall_ms"] for one in report["inferences"]][1:]
        units = report["audit"]["units"]
        audits = audited["records"]
        evidences = [lie(args, model, place / str(tensor), run, keys, photographs[0], tensor) for tensor in args.tensors]
        size, receipt, inside, outside = map(max, zip(*evidences))
        median = statistics.median
        print(
            f"| {model} | {median(latency):.0f} | {report['bytes']['up'] / len(photographs) / 1e6:.2f} "
            f"| {report['bytes']['down'] / len(photographs) / 1e3:.1f} | {units} "
            f"| {median(a['units'] for a in audits):.0f} | {median(a['bytes'] for a in audits) / 1e6:.1f} "
            f"| {median(a['ms'] for a in audits):.0f} | {process / len(audits) * 1e3:.0f} "
            f"| {size / 1e3:.0f} | {inside:.0f} | {outside:.0f} | {receipt} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--larvatus", default="target/release/larvatus")
    parser.add_argument("--crooked", default="target/release/crooked")
    parser.add_argument("--models", default="resnet50,vgg16")
    parser.add_argument("--part", type=float, default=0.05)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--judges", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tensors", default="2,20,21", help="which a crooked worker computes wrong, one after the other")
    args = parser.parse_args()
    args.tensors = list(map(int, args.tensors.split(",")))
    photographs = sorted(map(str, (CACHE / "images" / "imagenet").glob("*.jpg")))[: args.runs]
    print("| model | latency ms | MB up | kB down | units | drawn | MB opened | audit ms | with its process ms | evidence kB | judge ms | with its process ms | receipt B |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for model in args.models.split(","):
        row(args, model, photographs)


if __name__ == "__main__":
    main()
