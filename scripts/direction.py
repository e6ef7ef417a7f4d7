#!/usr/bin/env python3
"""Fails where a crate depends on one it must not: a crate is a trust boundary.

The trusted side never links the worker, the worker never links the trusted side, the host knows neither,
and only the command line knows all. Dependencies of tests alone do not count.
"""

import json
import subprocess
import sys

ALLOWED = {
    "larvatus-kernels": set(),
    "larvatus-proto": {"larvatus-kernels"},
    "larvatus-attest": set(),
    "larvatus-graph": {"larvatus-kernels", "larvatus-proto"},
    "larvatus": {"larvatus-kernels", "larvatus-proto", "larvatus-graph"},
    "larvatus-assess": {"larvatus-kernels", "larvatus-graph"},
    "larvatus-worker": {"larvatus-kernels", "larvatus-proto", "larvatus-graph"},
    "larvatus-train": {"larvatus-kernels", "larvatus-proto", "larvatus-host"},
    "larvatus-host": {"larvatus-kernels", "larvatus-proto"},
    "larvatus-serve": {"larvatus-attest"},
    "larvatus-cli": None,
    "larvatus-lab": None,
    "larvatus-testkit": None,
}
# Crates that may not come near the trusted code base's arithmetic and protocol.
HEAVY = {"tokio", "tract-onnx", "clap", "serde_json"}
LIGHT = {"larvatus-kernels", "larvatus-proto", "larvatus-graph", "larvatus-host", "larvatus-worker"}
# Only the host and what attests channels speak TLS; the host only where it is asked to, as with multicast DNS.
NETWORK = {"mdns-sd", "ring", "rustls"}


def main():
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["packages"]
    faults = []
    for package in packages:
        name = package["name"]
        if name not in ALLOWED:
            faults.append(f"{name} is not known here: say in {__file__} what it may use")
            continue
        used = {d["name"] for d in package["dependencies"] if d["kind"] in (None, "build")}
        allowed = ALLOWED[name]
        if allowed is not None:
            faults += [f"{name} must not depend on {d}" for d in used if d in ALLOWED and d not in allowed]
        if name in LIGHT:
            faults += [f"{name} must not depend on {d}" for d in used & HEAVY]
        always = {d["name"] for d in package["dependencies"] if d["kind"] is None and not d["optional"]}
        if {"discovery", "tls"} & set(package["features"].get("default", [])):
            faults.append(f"{name} must speak neither TLS nor multicast DNS by default")
        network = NETWORK - {"ring", "rustls"} if name == "larvatus-attest" else NETWORK
        faults += [f"{name} must not depend on {d}" for d in (always if name == "larvatus-host" else used) & network]
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"directions of {len(packages)} crates are as they should be")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
