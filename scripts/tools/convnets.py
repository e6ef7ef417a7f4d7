"""Convolutional architectures for measuring speed: VGG16, ResNets, MobileNets, with seeded weights.

Their weights mean nothing, their numbers must: a batch-norm network with default statistics is
numerically degenerate (logits of 1e-9 or 1e8), and a fixed-point test on it passes or fails for
the wrong reason. So every convolution is calibrated as its layer is added: batch-norm's mean and
variance are those that six photographs really give, which makes each channel N(0, 1) there; gain 1,
bias 0. The last batch-norm of a residual branch has gain 0.5: trained ones lie well below 1 (they
start at 0 by common practice), and with 1 a deep random network is chaotic, a rounding error grows
from block to block. The batch-norm is then folded, so the files hold Conv with bias, as an exporter
writes an evaluated network. The classifier is scaled to logits of standard deviation 2.5.
Source: the layer tables of the papers in torchvision's arrangement (ResNet: stride on the 3×3).
"""
import numpy as np

from . import catalogue, images
from .cache import Cache, default_dir, run_main
from .graph import Graph

CALIBRATION_IMAGES = 6
BRANCH_GAIN = 0.5
LOGIT_STD = 2.5
VGG16 = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool"]
# output channels, stride of each depthwise-separable block
MOBILENET_V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
# expansion, output channels, repeats, stride
MOBILENET_V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class Net:
    """A convolutional network under construction; `channels` follows the running tensor."""

    def __init__(self, name: str, seed: int, photographs):
        self.rng = np.random.default_rng(seed)
        self.g = Graph(name)
        self.x = self.g.input("image", [1, 3, 224, 224], watch=photographs)
        self.channels = 3

    def conv(self, name, out, kernel, stride=1, group=1, act=None, x=None, gain=1.0):
        """Convolution and calibrated batch-norm with that gain, folded; then `act` (None, "relu", "clip"). Padding keeps the size."""
        g, fan_in = self.g, self.channels // group * kernel * kernel
        weight = self.rng.standard_normal((out, self.channels // group, kernel, kernel)) * np.sqrt(2 / fan_in)
        pad = kernel // 2
        y = g.conv(x or self.x, weight, np.zeros(out), name, stride, (pad,) * 4, group)
        seen = np.concatenate([a.reshape(out, -1) for a in g.watch[y]], axis=1).astype(np.float64)
        gain = gain / np.sqrt(seen.var(axis=1) + 1e-5)
        shift = -seen.mean(axis=1) * gain
        g.weights[f"{name}.weight"] = (weight * gain[:, None, None, None]).astype(np.float32)
        g.weights[f"{name}.bias"] = shift.astype(np.float32)
        g.watch[y] = [(a * gain[:, None, None] + shift[:, None, None]).astype(np.float32) for a in g.watch[y]]
        self.x, self.channels = self.activate(y, act), out
        return self.x

    def activate(self, y, act):
        if act == "relu":
            return self.g.op("Relu", [y])
        if act == "clip":
            for name, bound in (("clip.low", 0), ("clip.high", 6)):
                if name not in self.g.weights:
                    self.g.constant(np.float32(bound), name)
            return self.g.op("Clip", [y, "clip.low", "clip.high"])
        return y

    def dense(self, name, inputs, out, std, act=None):
        """Fully connected layer whose outputs have the given standard deviation on the photographs."""
        weight = self.rng.standard_normal((out, inputs), np.float32) / np.float32(np.sqrt(inputs))
        y = self.g.gemm(self.x, weight, np.zeros(out), name)
        gain = std / np.concatenate([a.ravel() for a in self.g.watch[y]]).std()
        self.g.weights[f"{name}.weight"] = (weight * gain).astype(np.float32)
        self.g.watch[y] = [(a * gain).astype(np.float32) for a in self.g.watch[y]]
        self.x = self.activate(y, act)
        self.g.forget(self.x)

    def add(self, a, b):
        self.x = self.g.op("Add", [a, b])
        return self.x

    def classifier(self):
        self.x = self.g.op("Flatten", [self.g.op("GlobalAveragePool", [self.x])], axis=1)
        self.dense("logits", self.channels, 1000, LOGIT_STD)
        self.g.output("logits", [1, 1000])


def vgg16(n: Net) -> None:
    for i, layer in enumerate(VGG16):
        if layer == "pool":
            n.x = n.g.op("MaxPool", [n.x], kernel_shape=[2, 2], strides=[2, 2])
        else:
            n.conv(f"features.{i}", layer, 3, act="relu")
        n.g.forget(n.x)
    n.x = n.g.op("Flatten", [n.x], axis=1)
    n.dense("classifier.0", 512 * 7 * 7, 4096, 1, "relu")
    n.dense("classifier.1", 4096, 4096, 1, "relu")
    n.dense("logits", 4096, 1000, LOGIT_STD)
    n.g.output("logits", [1, 1000])


def resnet(*blocks: int, bottleneck: bool):
    def build(n: Net) -> None:
        n.conv("stem", 64, 7, 2, act="relu")
        n.x = n.g.op("MaxPool", [n.x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for stage, count in enumerate(blocks):
            width = 64 << stage
            out = width * 4 if bottleneck else width
            for block in range(count):
                name, first, channels = f"layer{stage + 1}.{block}", n.x, n.channels
                stride = 2 if block == 0 and stage > 0 else 1
                if bottleneck:
                    n.conv(f"{name}.conv1", width, 1, act="relu")
                    n.conv(f"{name}.conv2", width, 3, stride, act="relu")
                    y = n.conv(f"{name}.conv3", out, 1, gain=BRANCH_GAIN)
                else:
                    n.conv(f"{name}.conv1", width, 3, stride, act="relu")
                    y = n.conv(f"{name}.conv2", out, 3, gain=BRANCH_GAIN)
                if stride != 1 or channels != out:
                    n.channels = channels
                    first = n.conv(f"{name}.downsample", out, 1, stride, x=first)
                n.x = n.activate(n.add(y, first), "relu")
                n.g.forget(n.x)
        n.classifier()
    return build


def mobilenet_v1(n: Net) -> None:
    n.conv("stem", 32, 3, 2, act="clip")
    for i, (out, stride) in enumerate(MOBILENET_V1):
        n.conv(f"block{i}.depthwise", n.channels, 3, stride, n.channels, "clip")
        n.conv(f"block{i}.pointwise", out, 1, act="clip")
        n.g.forget(n.x)
    n.classifier()


def mobilenet_v2(n: Net) -> None:
    n.conv("stem", 32, 3, 2, act="clip")
    index = 0
    for expansion, out, repeats, first_stride in MOBILENET_V2:
        for repeat in range(repeats):
            name, first, channels = f"block{index}", n.x, n.channels
            stride = first_stride if repeat == 0 else 1
            if expansion != 1:
                n.conv(f"{name}.expand", channels * expansion, 1, act="clip")
            n.conv(f"{name}.depthwise", n.channels, 3, stride, n.channels, "clip")
            residual = stride == 1 and channels == out
            y = n.conv(f"{name}.project", out, 1, gain=BRANCH_GAIN if residual else 1.0)
            if residual:
                n.add(y, first)
            n.g.forget(n.x)
            index += 1
    n.conv("head", 1280, 1, act="clip")
    n.classifier()


NETS = {
    "vgg16": (vgg16, 16),
    "resnet18": (resnet(2, 2, 2, 2, bottleneck=False), 18),
    "resnet50": (resnet(3, 4, 6, 3, bottleneck=True), 50),
    "resnet101": (resnet(3, 4, 23, 3, bottleneck=True), 101),
    "resnet152": (resnet(3, 8, 36, 3, bottleneck=True), 152),
    "mobilenetv1": (mobilenet_v1, 1001),
    "mobilenetv2": (mobilenet_v2, 1002),
}
IMAGE_SAMPLES = {
    "samples": {"images": "images/imagenet/labels.csv"},
    "preprocessing": {"crop": 0.875, "resize": "bicubic", "mean": 127, "std": 128, "layout": "NCHW", "colour": "RGB"},
}


def main(name: str) -> int:
    cache = Cache(default_dir())
    build, seed = NETS[name]
    photographs = [images.classify_input(p) for p, _ in images.labelled(cache)[:CALIBRATION_IMAGES]]
    net = Net(name, seed, photographs)
    build(net)
    path = cache.models / f"{name}.onnx"
    net.g.save(path)
    catalogue.publish(cache, name, path, source="generated, seeded weights", **IMAGE_SAMPLES)
    return 0


if __name__ == "__main__":
    run_main(main)
