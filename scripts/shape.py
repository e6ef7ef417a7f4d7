"""A slow link: a TCP proxy that limits bandwidth and adds delay, for measurements.

    shape.py LISTEN_PORT HOST:PORT [--mbit 300] [--delay-ms 5]

Each way of each connection has the whole bandwidth; a byte arrives `delay` after it has left, so a
round trip takes twice as long. Bytes on their way are bounded by bandwidth times delay and a
buffer, so a sender is held back as on a real link.
"""

import argparse
import queue
import socket
import threading
import time

PIECE = 16 * 1024


def forward(source, sink, rate, delay):
    """Moves one way of a connection: a reader that keeps to the rate, a writer that keeps the delay."""
    on_the_way = queue.Queue(maxsize=max(16, int(rate * delay / PIECE) + 16))

    def deliver():
        while (item := on_the_way.get()) is not None:
            due, piece = item
            time.sleep(max(0.0, due - time.monotonic()))
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
    free = time.monotonic()
    while True:
        try:
            piece = source.recv(PIECE)
        except OSError:
            piece = b""
        if not piece:
            break
        free = max(free, time.monotonic()) + len(piece) / rate
        while writer.is_alive():
            try:
                on_the_way.put((free + delay, piece), timeout=0.2)
                break
            except queue.Full:
                continue
        if not writer.is_alive():
            return
        time.sleep(max(0.0, free - time.monotonic() - 0.002))
    on_the_way.put(None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("port", type=int, help="where to listen on 127.0.0.1")
    parser.add_argument("target", help="HOST:PORT of the worker")
    parser.add_argument("--mbit", type=float, default=300.0, help="megabits a second, each way")
    parser.add_argument("--delay-ms", type=float, default=5.0, help="milliseconds, each way")
    given = parser.parse_args()
    host, _, port = given.target.rpartition(":")
    rate, delay = given.mbit * 1e6 / 8, given.delay_ms / 1e3
    with socket.create_server(("127.0.0.1", given.port)) as listener:
        while True:
            client, _ = listener.accept()
            try:
                worker = socket.create_connection((host, int(port)))
            except OSError as err:
                print(f"shape.py: {given.target}: {err}", flush=True)
                client.close()
                continue
            for end in (client, worker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way in ((client, worker), (worker, client)):
                threading.Thread(target=forward, args=(*way, rate, delay), daemon=True).start()


if __name__ == "__main__":
    main()
