"""A slow link: a TCP proxy that limits bandwidth and adds delay, for measurements.

    shape.py LISTEN_PORT HOST:PORT [LISTEN_PORT HOST:PORT ...] [--mbit 300] [--delay-ms 5] [--from-call]
    shape.py --check [--mbit 300] [--delay-ms 5]

All connections share one link: each of its two ways has the whole bandwidth, first come, first served. A byte
arrives `delay` after it has left, so a round trip takes twice as long. Bytes on their way are bounded by
bandwidth times delay and a buffer, so a sender is held back as on a real link.

With --from-call a connection passes unshaped until the trusted side makes its first call (a frame of kind 4 or 8): so the
upload of weights, which is done once, does not have to be waited for. This needs links without TLS.

With --check nothing is forwarded: it measures throughput and round trip through itself and says how far they are from
its settings.
"""

import argparse
import queue
import socket
import subprocess
import sys
import threading
import time

# A round of linear layers, or a run of a whole network.
CALLS = (4, 8)
HEADER = 8


class Way:
    """One way of the link: when it is free again."""

    def __init__(self, rate, delay):
        self.rate, self.delay = rate, delay
        self.piece = int(min(64 * 1024, max(2 * 1024, rate * 0.0005)))
        self.free = 0.0
        self.lock = threading.Lock()

    def send(self, size):
        """Takes the link for so many bytes; returns when they have left."""
        with self.lock:
            self.free = max(self.free, time.monotonic()) + size / self.rate
            return self.free


class UntilCall:
    """Whether a connection is shaped yet: reads frame headers on their way to the worker."""

    def __init__(self, waits):
        self.called = not waits
        self.skip, self.header = 0, b""

    def see(self, piece):
        while piece and not self.called:
            if self.skip:
                step = min(self.skip, len(piece))
                self.skip, piece = self.skip - step, piece[step:]
                continue
            lacks = HEADER - len(self.header)
            self.header, piece = self.header + piece[:lacks], piece[lacks:]
            if len(self.header) == HEADER:
                kind, head = self.header[0], int.from_bytes(self.header[2:4], "little")
                self.called = kind in CALLS
                self.skip = head + 4 * int.from_bytes(self.header[4:], "little")
                self.header = b""


def forward(source, sink, way, state, reads_frames):
    """Moves one way of a connection: a reader that keeps to the rate, a writer that keeps the delay."""
    on_the_way = queue.Queue(maxsize=max(16, int(way.rate * way.delay / way.piece) + 16))

    def deliver():
        while (item := on_the_way.get()) is not None:
            due, piece = item
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            try:
                sink.sendall(piece)
            except OSError:
                source.close()
                return
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    writer = threading.Thread(target=deliver, daemon=True)
    writer.start()
    while True:
        try:
            piece = source.recv(way.piece if state.called else 256 * 1024)
        except OSError:
            piece = b""
        if not piece:
            break
        if reads_frames and not state.called:
            state.see(piece)
        left = way.send(len(piece)) if state.called else 0.0
        while writer.is_alive():
            try:
                on_the_way.put((left + way.delay if left else 0.0, piece), timeout=0.2)
                break
            except queue.Full:
                continue
        if not writer.is_alive():
            return
        # A little ahead, so that the link does not run dry while this thread is not scheduled.
        wait = left - time.monotonic() - 0.002
        if wait > 0:
            time.sleep(wait)
    on_the_way.put(None)


def serve(listener, host, port, up, down, from_call):
    while True:
        client, _ = listener.accept()
        try:
            worker = socket.create_connection((host, int(port)))
        except OSError as err:
            print(f"shape.py: {host}:{port}: {err}", flush=True)
            client.close()
            continue
        for end in (client, worker):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        state = UntilCall(from_call)
        for ends in ((client, worker, up, state, True), (worker, client, down, state, False)):
            threading.Thread(target=forward, args=ends, daemon=True).start()


def exact(connection, size):
    """Receives so many bytes and throws them away."""
    while size:
        got = connection.recv(min(size, 256 * 1024))
        if not got:
            sys.exit("shape.py: the link ended while it was measured")
        size -= len(got)


class Measured:
    """Throughput both ways and round trip of a link, in megabits a second and milliseconds."""

    def __init__(self, mbit, delay_ms, seconds=1.0):
        self.mbit, self.trip_ms = mbit, 2 * delay_ms
        size = int(mbit * 1e6 / 8 * seconds)
        with socket.create_server(("127.0.0.1", 0)) as end, socket.create_server(("127.0.0.1", 0)) as spare:
            at = spare.getsockname()[1]
            spare.close()
            command = [sys.executable, __file__, str(at), f"127.0.0.1:{end.getsockname()[1]}",
                       "--mbit", str(mbit), "--delay-ms", str(delay_ms)]
            proxy = subprocess.Popen(command, stdout=subprocess.PIPE)
            try:
                proxy.stdout.readline()
                threading.Thread(target=self.answer, args=(end, size), daemon=True).start()
                with socket.create_connection(("127.0.0.1", at)) as here:
                    here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    trips = sorted(self.trip(here) for _ in range(21))
                    self.measured_trip_ms = 1e3 * trips[10]
                    started = time.monotonic()
                    here.sendall(bytes(size))
                    exact(here, 1)
                    self.up = self.rate(size, started)
                    started = time.monotonic()
                    here.sendall(b"x")
                    exact(here, size)
                    self.down = self.rate(size, started)
            finally:
                proxy.kill()
                proxy.wait()

    @staticmethod
    def trip(here):
        started = time.monotonic()
        here.sendall(b"x")
        exact(here, 1)
        return time.monotonic() - started

    def rate(self, size, started):
        """Megabits a second, a round trip taken away."""
        return 8e-6 * size / (time.monotonic() - started - 1e-3 * self.trip_ms)

    @staticmethod
    def answer(end, size):
        there, _ = end.accept()
        with there:
            there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(21):
                exact(there, 1)
                there.sendall(b"x")
            exact(there, size)
            there.sendall(b"x")
            exact(there, 1)
            there.sendall(bytes(size))

    HEAD = ("| link | up Mb/s | error | down Mb/s | error | round trip ms | too long by |\n"
            "|---|---|---|---|---|---|---|")

    def row(self):
        off = lambda rate: f"{rate:.1f} | {100 * (rate / self.mbit - 1):+.1f} %"  # noqa: E731
        return (f"| {self.mbit:g} Mb/s, {self.trip_ms:g} ms | {off(self.up)} | {off(self.down)} "
                f"| {self.measured_trip_ms:.2f} | {self.measured_trip_ms - self.trip_ms:.2f} ms |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pairs", nargs="*", metavar="PORT HOST:PORT",
                        help="where to listen on 127.0.0.1, and the worker that is reached so")
    parser.add_argument("--mbit", type=float, default=300.0, help="megabits a second, each way")
    parser.add_argument("--delay-ms", type=float, default=5.0, help="milliseconds, each way")
    parser.add_argument("--from-call", action="store_true", help="pass unshaped until the first call")
    parser.add_argument("--check", action="store_true", help="measure the link itself")
    given = parser.parse_args()
    if given.check:
        print(Measured.HEAD)
        print(Measured(given.mbit, given.delay_ms).row())
        return
    if not given.pairs or len(given.pairs) % 2:
        parser.error("give PORT HOST:PORT, once for each worker")
    rate, delay = given.mbit * 1e6 / 8, given.delay_ms / 1e3
    up, down = Way(rate, delay), Way(rate, delay)
    threads = []
    for port, target in zip(given.pairs[::2], given.pairs[1::2]):
        host, _, its = target.rpartition(":")
        listener = socket.create_server(("127.0.0.1", int(port)))
        args = (listener, host, its, up, down, given.from_call)
        threads.append(threading.Thread(target=serve, args=args, daemon=True))
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
