"""A small ONNX writer: names are made up, weights become initializers, the result is checked.

With `watch` arrays the graph is *calibrated*: every node is also run on them as it is added
(by ONNX Runtime, one thread), so that a layer's weights can depend on what really reaches it.
"""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
ELEMENT = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}


class Graph:
    def __init__(self, name: str):
        self.name, self.nodes, self.weights = name, [], {}
        self.inputs, self.outputs, self.watch, self._count = [], [], {}, 0

    def input(self, name: str, shape, dtype=np.float32, watch=None) -> str:
        """A graph input; `watch` is a list of arrays of that shape to calibrate with."""
        self.inputs.append(helper.make_tensor_value_info(name, ELEMENT[np.dtype(dtype)], list(shape)))
        if watch is not None:
            self.watch[name] = [np.ascontiguousarray(w, dtype) for w in watch]
        return name

    def constant(self, array: np.ndarray, name: str) -> str:
        assert name not in self.weights, name
        self.weights[name] = np.asarray(array, order="C")  # ascontiguousarray would make a scalar 1-d
        return name

    def op(self, kind: str, inputs, name: str = "", **attributes) -> str:
        return self.split_op(kind, inputs, [name], **attributes)[0]

    def split_op(self, kind: str, inputs, names, **attributes) -> list:
        """A node with one output per name; an empty name is made up."""
        self._count += 1
        outs = [n or f"{kind.lower()}_{self._count}" for n in names]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name=f"{kind}_{self._count}", **attributes))
        if self.watch:
            self._run(self.nodes[-1])
        return outs

    def conv(self, x, weight, bias, name, stride=1, pads=(0, 0, 0, 0), group=1) -> str:
        """Weight [out, in/group, kh, kw], bias [out] or None."""
        inputs = [x, self.constant(weight.astype(np.float32), f"{name}.weight")]
        if bias is not None:
            inputs.append(self.constant(bias.astype(np.float32), f"{name}.bias"))
        return self.op("Conv", inputs, name, kernel_shape=list(weight.shape[2:]), strides=[stride, stride],
                       pads=list(pads), dilations=[1, 1], group=group)

    def gemm(self, x, weight, bias, name) -> str:
        """x [n, in] · weight [out, in]ᵀ + bias [out]."""
        return self.op("Gemm", [x, self.constant(weight.astype(np.float32), f"{name}.weight"),
                                self.constant(bias.astype(np.float32), f"{name}.bias")], name, transB=1)

    def matmul(self, x, weight, bias, name) -> str:
        """x […, in] · weight [in, out] + bias [out], as exporters write a linear layer on tokens."""
        y = self.op("MatMul", [x, self.constant(weight.astype(np.float32), f"{name}.weight")], f"{name}.product")
        return self.op("Add", [y, self.constant(bias.astype(np.float32), f"{name}.bias")], name)

    def rename(self, old: str, new: str) -> None:
        """Gives the last node's output its name for the world."""
        assert list(self.nodes[-1].output) == [old]
        self.nodes[-1].output[0] = new

    def output(self, name: str, shape, dtype=np.float32) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, ELEMENT[np.dtype(dtype)], list(shape)))

    def model(self) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(v, k) for k, v in self.weights.items()]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                                  producer_name="larvatus-scripts", ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model

    def save(self, path: Path) -> None:
        from .cache import write_atomic
        write_atomic(path, self.model().SerializeToString())

    def _run(self, node) -> None:
        names = [n for n in node.input if n]
        first = {n: self.weights[n] if n in self.weights else self.watch[n][0] for n in names}
        value = [helper.make_tensor_value_info(n, ELEMENT[a.dtype], a.shape) for n, a in first.items()]
        outs = [helper.make_empty_tensor_value_info(o) for o in node.output]
        graph = helper.make_graph([node], "one", value, outs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        run = session(model.SerializeToString())
        count = min(len(w) for n, w in self.watch.items() if n in names)
        results = [run.run(None, {n: self.watch[n][i] if n in self.watch else self.weights[n] for n in names})
                   for i in range(count)]
        for k, out in enumerate(node.output):
            self.watch[out] = [r[k] for r in results]

    def forget(self, *keep: str) -> None:
        """Drops the calibration values of everything but `keep`, to save memory."""
        self.watch = {n: self.watch[n] for n in keep} if self.watch else {}


def session(model, threads: int = 1, optimise: bool = True):
    """An ONNX Runtime session on the CPU with a fixed number of threads."""
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options,
                                providers=["CPUExecutionProvider"])
