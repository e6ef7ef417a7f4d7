#!/usr/bin/env python3
"""Writes testkit/models/tiny-cnn.onnx: the model of the examples and the quickest tests.

A convolution with ReLU, a depthwise convolution, a residual branch, a strided convolution, global pooling
and a dense layer, on 1x3x16x16 images; 10 classes. Weights are seeded.
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    random = np.random.default_rng(2026)
    weights, nodes = [], []

    def weight(name, *shape):
        fan_in = int(np.prod(shape[1:])) or 1
        values = random.standard_normal(shape) / np.sqrt(fan_in)
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))

    pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    node("Conv", ["image", weight("w1", 8, 3, 3, 3), weight("b1", 8)], "conv1", **pads)
    node("Relu", ["conv1"], "relu1")
    node("Conv", ["relu1", weight("w2", 8, 1, 3, 3)], "depthwise", group=8, **pads)
    node("Relu", ["depthwise"], "relu2")
    node("Conv", ["relu2", weight("w3", 8, 8, 1, 1), weight("b3", 8)], "pointwise")
    node("Add", ["pointwise", "relu1"], "residual")
    node("Relu", ["residual"], "relu3")
    node("Conv", ["relu3", weight("w4", 16, 8, 3, 3)], "strided", strides=[2, 2], **pads)
    node("GlobalAveragePool", ["strided"], "pooled")
    node("Flatten", ["pooled"], "flat")
    node("Gemm", ["flat", weight("w5", 10, 16), weight("b5", 10)], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "tiny-cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path = ROOT / "testkit" / "models" / "tiny-cnn.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
