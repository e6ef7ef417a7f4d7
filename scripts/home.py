#!/usr/bin/env python3
"""A home on one machine: a throttled device, workers behind a shaped link, every preset; the table of docs/verisplit.md.

    cargo build --release --workspace
    python3 scripts/home.py [--larvatus target/release/larvatus] [--models vit-ti16,…] [--presets local,clear,…]
                            [--mbit 20,100,300,1000] [--trip-ms 1,5,20] [--runs 8] [--seconds 60]
                            [--gmacs 8] [--json FILE] [--quick]

The device is `larvatus run` with so much of one core that ViT-Ti/16 in float runs at --gmacs 10⁹ multiplications a
second: by a control group where there is one (version 1 or 2, as root), else by stopping and continuing the process.
The default is a Raspberry Pi 4: 8 Gflop/s in double precision by HPL on its four cores (Feiereisen 2022,
https://feiereisen.net/?page_id=924), so about 16 in single, which is 8 · 10⁹ multiplications with their additions.

Workers are processes of one thread each, reached through one link that they share (`shape.py`): so many megabits a second
each way, so many milliseconds there and back. The link is measured first. Weights go to the workers unshaped.

Of each run the first inference only warms up. Latencies are from begin to end, one inference at a time. `floor` is bytes ÷
bandwidth + round trips × trip time; `explained` adds the device's CPU time at its share, and the workers' CPU time.
A control group lets the first millisecond of each burst through unthrottled, so short rounds are faster than on a slow core;
`explained` counts them in full. CPU times are an inference's, offline (tickets, check vectors, splitting weights) too.
`busy` is how many of the machine's cores were in use, everything here together: near all of them, latencies are too long.

Rows that are in the --json file already are not measured again.
"""
import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from shape import Measured  # noqa: E402
from tools.cache import Cache, FetchError, default_dir, fail  # noqa: E402

HERE = Path(__file__).resolve().parent
MODELS = "vit-ti16,vit-s16,vit-b16,resnet18,resnet50,vgg16,mobilenetv2"
# What is asked for beside the preset: workers, further arguments.
PRESETS = {
    "local": (0, []),
    "clear": (1, []),
    "integrity": (1, []),
    "slalom": (1, []),
    "verisplit-exact": (2, ["--danger-local-workers"]),
    "verisplit": (2, ["--danger-local-workers"]),
    "whole-audited": (1, []),
}
# Scores and sums of attention, which no plan counts: 12 layers, 197 tokens, 192 features.
ATTENTION = 12 * 2 * 197 * 197 * 192
TICK = os.sysconf("SC_CLK_TCK")


def cpu_of(pid) -> float:
    """CPU seconds of a process so far, with what it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return sum(map(int, fields[11:15])) / TICK


class Group:
    """Throttles by a control group of its own."""

    QUOTA = 1000  # microseconds, the least that the kernel takes

    def __init__(self):
        name = f"larvatus-home-{os.getpid()}"
        v2 = Path("/sys/fs/cgroup")
        self.two = (v2 / "cgroup.controllers").exists()
        if self.two:
            if "cpu" not in (v2 / "cgroup.subtree_control").read_text().split():
                (v2 / "cgroup.subtree_control").write_text("+cpu")
            self.path = v2 / name
        else:
            self.path = v2 / "cpu" / name
        self.path.mkdir()

    def set(self, share):
        period = int(min(1_000_000, max(1000, self.QUOTA / share)))
        quota = max(self.QUOTA, int(period * share))
        if self.two:
            (self.path / "cpu.max").write_text(f"{quota} {period}" if share < 1 else f"max {period}")
        else:
            (self.path / "cpu.cfs_quota_us").write_text("-1")
            (self.path / "cpu.cfs_period_us").write_text(str(period))
            if share < 1:
                (self.path / "cpu.cfs_quota_us").write_text(str(quota))

    def start(self, command, **how):
        inside = 'echo $$ > "$0" && exec "$@"'
        return subprocess.Popen(["sh", "-c", inside, self.path / "cgroup.procs", *command], **how)

    def close(self):
        for _ in range(50):
            try:
                return self.path.rmdir()
            except OSError:
                time.sleep(0.1)

    def __str__(self):
        return f"a control group (version {2 if self.two else 1})"


class StopAndGo:
    """Throttles by stopping a process and letting it go on."""

    PERIOD = 0.010

    def __init__(self):
        self.share = 1.0

    def set(self, share):
        self.share = share

    def start(self, command, **how):
        process = subprocess.Popen(command, **how)
        threading.Thread(target=self.drive, args=(process,), daemon=True).start()
        return process

    def drive(self, process):
        while process.poll() is None:
            time.sleep(self.PERIOD * self.share)
            if self.share < 1.0:
                process.send_signal(signal.SIGSTOP)
                time.sleep(self.PERIOD * (1.0 - self.share))
                process.send_signal(signal.SIGCONT)

    def close(self):
        pass

    def __str__(self):
        return "stopping and continuing the process"


def throttle():
    try:
        return Group()
    except OSError as why:
        print(f"no control group ({why}): the device is stopped and continued instead", file=sys.stderr)
        return StopAndGo()


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


class Home:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.device = throttle()
        self.device.set(1.0)
        self.share = 1.0
        self.workers, self.ports = [], []
        self.photos = sorted((Cache(default_dir()).root / "images" / "imagenet").glob("*.jpg"))
        if not self.photos:
            raise FetchError("no photographs in the cache; run scripts/fetch.py demo")

    def close(self):
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.device.close()

    def start_workers(self):
        for _ in range(2):
            command = [self.args.larvatus, "worker", "--threads", str(self.args.threads),
                       "--listen", "tcp://127.0.0.1:0"]
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            address = worker.stdout.readline().split(" on ", 1)[-1].split(": ")[0]
            if not address.startswith("tcp://"):
                raise FetchError(f"{self.args.larvatus} worker does not start")
            self.workers.append(worker)
            self.ports.append(address.rsplit(":", 1)[1])

    def run(self, path, preset, runs, more=()):
        """Runs a model on the device; its report, with the outputs' bytes, and what else it took."""
        report, npz = self.folder / "report.json", self.folder / "out.npz"
        photos = [str(self.photos[at % len(self.photos)]) for at in range(runs)]
        command = [self.args.larvatus, "run", str(path), "--preset", preset, "--window", "1", "--top", "1",
                   "--timeout", "900", "--report", str(report), "--output", str(npz),
                   "--image", *photos, *PRESETS[preset][1], *more]
        if preset == "whole-audited":
            command += ["--audit-dir", tempfile.mkdtemp(dir=self.folder)]
        started = time.monotonic()
        device = self.device.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        _, said = device.communicate()
        if device.returncode:
            raise FetchError(f"{preset} on {path.name}: {said.strip()[-300:]}")
        found = json.loads(report.read_text())
        found["elapsed"] = time.monotonic() - started
        with zipfile.ZipFile(npz) as arrays:
            found["outputs"] = {name: arrays.read(name) for name in arrays.namelist()}
        return found

    def calibrate(self, path):
        """Finds the share of a core at which the device multiplies as fast as it shall."""
        plan = subprocess.run([self.args.larvatus, "plan", str(path), "--json"], capture_output=True, text=True,
                              check=True)
        macs = ATTENTION + sum(layer["macs"] for layer in json.loads(plan.stdout)["layers"])

        def gmacs(runs):
            walls = [one["wall_ms"] for one in self.run(path, "local", runs)["inferences"][1:]]
            return macs / quantile(walls, 0.5) / 1e6

        full = gmacs(12)
        share = self.args.gmacs / full
        if share >= 1:
            raise FetchError(f"this machine makes {full:.1f} GMAC/s on one core; --gmacs must be below")
        for _ in range(8):
            self.device.set(share)
            slow, self.share = gmacs(12), share
            if abs(slow / self.args.gmacs - 1) < 0.05:
                break
            share = min(1.0, share * self.args.gmacs / slow)
        else:
            print("the device does not settle: something else is using the machine", file=sys.stderr)
        print(f"device: {100 * share:.1f} % of one core by {self.device}: ViT-Ti/16 ({macs / 1e9:.2f} GMAC) in float runs "
              f"at {slow:.2f} GMAC/s (wanted {self.args.gmacs:g}; unthrottled {full:.1f})\n", flush=True)

    def measure(self, path, preset, mbit, trip_ms, runs, reference):
        """A row of the table. `reference` has what `local` and `local-exact` gave."""
        count, _ = PRESETS[preset]
        shaper, more = None, []
        try:
            if count:
                shaper, ports = self.shaper(mbit, trip_ms, count)
                more = [part for port in ports for part in ("--worker", f"tcp://127.0.0.1:{port}")]
                if count == 1:
                    # The weights go there beforehand, past the link.
                    self.device.set(1.0)
                    self.run(path, preset, 1, ["--worker", f"tcp://127.0.0.1:{self.ports[0]}"])
                    self.device.set(self.share)
            processes = [one.pid for one in self.workers[:count]]
            before = [cpu_of(pid) for pid in processes]
            found = self.run(path, preset, runs + 1, more)
            workers = sum(cpu_of(pid) - start for pid, start in zip(processes, before))
            link = cpu_of(shaper.pid) if shaper else 0.0
        finally:
            if shaper:
                shaper.kill()
                shaper.wait()
        kept = found["inferences"][1:]
        walls = [one["wall_ms"] for one in kept]
        mean = lambda pick: sum(map(pick, kept)) / len(kept)  # noqa: E731
        row = {
            "model": path.stem, "preset": preset, "mbit": mbit, "trip_ms": trip_ms, "runs": runs,
            "p50_ms": quantile(walls, 0.5), "p95_ms": quantile(walls, 0.95),
            "up": mean(lambda one: one["bytes"]["up"]), "down": mean(lambda one: one["bytes"]["down"]),
            "round_trips": mean(lambda one: one["round_trips"]),
            "online_ms": found["trusted_cpu_ms"]["online"] / (runs + 1),
            "offline_ms": found["trusted_cpu_ms"]["offline"] / (runs + 1),
            "workers_ms": 1e3 * workers / (runs + 1), "link_ms": 1e3 * link / (runs + 1),
            "share": self.share, "gmacs": self.args.gmacs, "elapsed_s": found["elapsed"],
            "input_privacy": found["input_privacy"], "weight_privacy": found["weight_privacy"],
            "soundness_bits": found["soundness_bits"], "verdict": found["verdict"],
        }
        used = row["online_ms"] + row["offline_ms"] + row["workers_ms"] + row["link_ms"]
        row["busy"] = used * (runs + 1) / (1e3 * found["elapsed"])
        row["floor_ms"] = floor(row) if count else None
        if count:
            row["explained_ms"] = row["floor_ms"] + row["online_ms"] / self.share + row["workers_ms"] / count
        same = [found["outputs"][name] == reference["exact"].get(name) for name in found["outputs"]]
        row["bits_of_local_exact"] = all(same)
        tops = [one["top"][0][0] if one.get("top") else None for one in found["inferences"]]
        row["top1_of_local"] = sum(mine == its for mine, its in zip(tops, reference["tops"])) / len(tops)
        return row

    def shaper(self, mbit, trip_ms, count):
        ports = free_ports(count)
        pairs = [part for port, its in zip(ports, self.ports) for part in (str(port), f"127.0.0.1:{its}")]
        command = [sys.executable, str(HERE / "shape.py"), *pairs, "--mbit", str(mbit),
                   "--delay-ms", str(trip_ms / 2), "--from-call"]
        shaper = subprocess.Popen(command, stdout=subprocess.PIPE)
        shaper.stdout.readline()
        return shaper, ports

    def reference(self, path, runs):
        """What the float network and the integer network give here, unthrottled."""
        self.device.set(1.0)
        tops = [one["top"][0][0] if one.get("top") else None
                for one in self.run(path, "local", runs)["inferences"]]
        PRESETS["local-exact"] = (0, [])
        exact = self.run(path, "local-exact", runs)["outputs"]
        self.device.set(self.share)
        return {"tops": tops, "exact": exact}


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def floor(row):
    return 8e-3 * (row["up"] + row["down"]) / row["mbit"] + row["round_trips"] * row["trip_ms"]


HEAD = ("| model | mode | link | p50 ms | p95 ms | MiB up | down | trips | device CPU online | offline | workers | link "
        "| busy | floor ms | p50 ÷ floor | explained ms | against local | inputs | weights | lies pass | bits |")


def show(row, local):
    link = f"{row['mbit']:g} Mb/s, {row['trip_ms']:g} ms" if row["floor_ms"] is not None else "—"
    floors = "— | — | —"
    if row["floor_ms"] is not None:
        floors = f"{row['floor_ms']:.0f} | {row['p50_ms'] / row['floor_ms']:.2f} | {row['explained_ms']:.0f}"
    gain = f"{100 * (row['p50_ms'] / local - 1):+.0f} %" if local and row["floor_ms"] is not None else "—"
    lies = "audited later" if row["preset"] == "whole-audited" else f"2^-{row['soundness_bits']:.0f}" if row["soundness_bits"] else "—" if row["floor_ms"] is None else "believed"
    top = f"top-1 of float {100 * row['top1_of_local']:.0f} %"
    bits = "float" if row["preset"] == "local" else "those of local-exact" if row["bits_of_local_exact"] else top
    cells = [row["model"], row["preset"], link, f"{row['p50_ms']:.0f}", f"{row['p95_ms']:.0f}",
             f"{row['up'] / 2**20:.1f}", f"{row['down'] / 2**20:.1f}", f"{row['round_trips']:.0f}",
             f"{row['online_ms']:.0f}", f"{row['offline_ms']:.0f}", f"{row['workers_ms']:.0f}", f"{row['link_ms']:.0f}",
             f"{row['busy']:.1f}", floors, gain, row["input_privacy"], row["weight_privacy"], lies, bits]
    print(f"| {' | '.join(cells)} |", flush=True)


def known(args, presets):
    """Those of the presets that this program has."""
    model = HERE.parent / "testkit" / "models" / "tiny-cnn.onnx"
    for preset in presets:
        if preset not in PRESETS:
            raise FetchError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        asked = subprocess.run([args.larvatus, "plan", str(model), "--preset", preset], capture_output=True, text=True)
        if asked.returncode:
            print(f"{preset} is left out: {asked.stderr.strip()[-200:]}", file=sys.stderr)
        else:
            yield preset


def saved(path):
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure(args, home):
    entries = Cache(default_dir()).catalogue()
    models = []
    for name in args.models.split(","):
        if name not in entries:
            print(f"{name} is left out: not in the cache; run scripts/fetch.py speed", file=sys.stderr)
            continue
        models.append(home.photos and Cache(default_dir()).root / entries[name]["path"])
    presets = list(known(args, args.presets.split(",")))
    links = [(mbit, trip) for mbit in sorted(args.mbit, reverse=True) for trip in sorted(args.trip_ms)]
    load = Path("/proc/loadavg").read_text().split()[0]
    print(f"{os.cpu_count()} cores, load of the last minute {load}\n")
    print(Measured.HEAD)
    for mbit, trip in links:
        print(Measured(mbit, trip / 2).row(), flush=True)
    print()
    home.calibrate(Cache(default_dir()).root / entries["vit-ti16"]["path"])
    home.start_workers()
    done = saved(args.json)
    print(HEAD)
    print("|" + "---|" * HEAD.count(" | ") + "---|")
    for path in models:
        reference, local = None, None
        for preset in presets:
            bytes_of = None
            for mbit, trip in links if PRESETS[preset][0] else links[:1]:
                key = {"model": path.stem, "preset": preset, "gmacs": args.gmacs}
                if PRESETS[preset][0]:
                    key |= {"mbit": mbit, "trip_ms": trip}
                row = next((row for row in done if key.items() <= row.items()), None)
                if row is None:
                    reference = reference or home.reference(path, args.runs + 1)
                    runs = args.runs
                    if bytes_of:
                        expected = floor(bytes_of | {"mbit": mbit, "trip_ms": trip}) / 1e3
                        runs = max(2, min(runs, int(args.seconds / expected)))
                    try:
                        row = home.measure(path, preset, mbit, trip, runs, reference)
                    except FetchError as why:
                        print(f"left out: {why}", file=sys.stderr)
                        continue
                    if args.json:
                        with args.json.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                bytes_of = row
                local = row["p50_ms"] if preset == "local" else local
                show(row, local)


def numbers(text):
    return [float(one) for one in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--larvatus", default="target/release/larvatus")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--presets", default="local,clear,slalom,verisplit-exact,verisplit,whole-audited")
    parser.add_argument("--mbit", type=numbers, default=[20.0, 100.0, 300.0, 1000.0])
    parser.add_argument("--trip-ms", type=numbers, default=[1.0, 5.0, 20.0])
    parser.add_argument("--runs", type=int, default=8, help="inferences that count, at the most")
    parser.add_argument("--seconds", type=float, default=60.0, help="about so long for a row; never fewer than two runs")
    parser.add_argument("--gmacs", type=float, default=8.0, help="what the device multiplies, in 10⁹ a second")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--json", type=Path, help="a line a row is added to this file")
    parser.add_argument("--quick", action="store_true", help="ViT-Ti/16 and two links, three runs")
    args = parser.parse_args()
    if args.quick:
        args.models, args.mbit, args.trip_ms, args.runs = "vit-ti16", [100.0, 1000.0], [5.0], 3
    # Whoever ends this script ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        home = None
        try:
            home = Home(args, Path(folder))
            measure(args, home)
            return 0
        except FetchError as e:
            return fail(e)
        finally:
            if home:
                home.close()


if __name__ == "__main__":
    sys.exit(main())
