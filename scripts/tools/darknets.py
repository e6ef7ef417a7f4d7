"""Darknet Reference, Extraction and DenseNet-201 with seeded weights: the structures of the ternary paper.

    python3 -m tools.darknets NAME

The structures are those of the files darknet.cfg, extraction.cfg and densenet201.cfg of pjreddie/darknet: leaky rectifiers with
slope 0.1, batch-norm folded, a 1×1 convolution to 1000 classes and a mean. Trained weights are not to be had as a package; like the
other generated networks these serve for speed and sizes alone. Source: https://pjreddie.com/darknet/imagenet.
"""
from . import catalogue, images
from .cache import Cache, default_dir, run_main
from .convnets import CALIBRATION_IMAGES, IMAGE_SAMPLES, LOGIT_STD, Net
from .graph import Graph

# Numbers are channels of 3×3 convolutions; (n, k) of k×k ones.
DARKNET = [16, "pool", 32, "pool", 64, "pool", 128, "pool", 256, "pool", 512, "pool", 1024]
EXTRACTION = [("stem", 64), "pool", 192, "pool", (128, 1), 256, (256, 1), 512, "pool",
              *[(256, 1), 512] * 4, (512, 1), 1024, "pool", *[(512, 1), 1024] * 2]
DENSENET = [(6, 128), (12, 256), (48, 896), (32, None)]


class Darknet(Net):
    def __init__(self, name, seed, size, photographs):
        super().__init__(name, seed, photographs)
        # The input of another size, in place of the first one.
        self.g = Graph(name)
        self.x = self.g.input("image", [1, 3, size, size], watch=photographs)

    def activate(self, y, act):
        return self.g.op("LeakyRelu", [y], alpha=0.1) if act == "leaky" else super().activate(y, act)

    def pool(self):
        self.x = self.g.op("MaxPool", [self.x], kernel_shape=[2, 2], strides=[2, 2])
        self.g.forget(self.x)

    def scores(self):
        self.conv("classes", 1000, 1, gain=LOGIT_STD)
        self.x = self.g.op("Flatten", [self.g.op("GlobalAveragePool", [self.x])], axis=1)
        self.g.output(self.x, [1, 1000])


def chain(layers):
    def build(n: Darknet) -> None:
        for index, layer in enumerate(layers):
            if layer == "pool":
                n.pool()
                continue
            out, kernel = layer if isinstance(layer, tuple) else (layer, 3)
            if out == "stem":
                n.conv("stem", kernel, 7, 2, act="leaky")
            else:
                n.conv(f"conv{index}", out, kernel, act="leaky")
            n.g.forget(n.x)
        n.scores()
    return build


def densenet(n: Darknet) -> None:
    n.conv("stem", 64, 7, 2, act="leaky")
    n.pool()
    for block, (count, transition) in enumerate(DENSENET):
        for index in range(count):
            before, channels = n.x, n.channels
            n.conv(f"block{block}.{index}.narrow", 128, 1, act="leaky")
            n.conv(f"block{block}.{index}.grow", 32, 3, act="leaky")
            n.x, n.channels = n.g.op("Concat", [n.x, before], axis=1), channels + 32
            n.g.forget(n.x)
        if transition:
            n.conv(f"transition{block}", transition, 1, act="leaky")
            n.pool()
    n.scores()


NETS = {
    "darknet": (chain(DARKNET), 2001, 256),
    "extraction": (chain(EXTRACTION), 2002, 224),
    "densenet201": (densenet, 2003, 256),
}


def main(name: str) -> int:
    cache = Cache(default_dir())
    build, seed, size = NETS[name]
    photographs = [images.classify_input(p, size) for p, _ in images.labelled(cache)[:CALIBRATION_IMAGES]]
    net = Darknet(name, seed, size, photographs)
    build(net)
    path = cache.models / f"{name}.onnx"
    net.g.save(path)
    catalogue.publish(cache, name, path, source="generated, seeded weights", **IMAGE_SAMPLES)
    return 0


if __name__ == "__main__":
    run_main(main)
