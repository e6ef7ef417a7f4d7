"""Reference variants of an ONNX model with integer weights, built without the product's code.

The rule: a linear node (Conv, Gemm, MatMul) with a constant operand keeps that operand as integers
w in [−m, m], one scale max|w| / m per output channel, rounded half to even; m = 127 for int8 and
2047 for 12-bit weights. Three forms, all run by ONNX Runtime in float:

* `rounded`: the constant replaced by w·scale: the float network *with the same int8 weights*;
* `qdq`: int8 w and DequantizeLinear, ONNX Runtime's own form of it (8 bits only; needs opset 13);
* `exact`: `rounded`, and each activation rounded to q·max|x|/A with |q| ≤ A = min(2¹⁵ − 1, ⌊(p−1)/2 / max_c Σ|w|⌋),
  per tensor, for MatMul per token row: what the exact path computes, up to float rounding. Where A < 127 the
  activation stays float: the exact path splits such a layer or keeps it at home.
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

P = 2**31 - 1
LINEAR = ("Conv", "Gemm", "MatMul")


def integers(weight: np.ndarray, axis: int, bits: int):
    """(integers as float32, scale per channel): symmetric, round half to even; a zero channel has scale 1."""
    most = np.float32(2 ** (bits - 1) - 1)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.where(peak > 0, peak / most, np.float32(1)).astype(np.float32)
    return np.clip(np.rint(weight / scale), -most, most).astype(np.float32), scale


def bound(weight: np.ndarray, axis: int) -> int:
    """A of integer weights: no activation up to it can wrap the sum of any output channel."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    most = int(np.abs(weight).astype(np.float64).sum(axis=others).max())
    return min(2**15 - 1, (P - 1) // 2 // most) if most else 2**15 - 1


def constants(model) -> dict:
    """Initializers and Constant nodes by name."""
    out = {i.name: i for i in model.graph.initializer}
    for n in model.graph.node:
        if n.op_type == "Constant" and n.attribute and n.attribute[0].name == "value":
            out[n.output[0]] = n.attribute[0].t
    return out


def linear_nodes(model):
    """(node, index of the constant operand, its output-channel axis, its value) of every linear node that has one."""
    known = constants(model)
    for node in model.graph.node:
        if node.op_type not in LINEAR:
            continue
        for index in (1, 0) if node.op_type == "MatMul" else (1,):
            tensor = known.get(node.input[index])
            if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
                continue
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            axis = {"Conv": 0, "Gemm": 0 if turned else 1}.get(
                node.op_type, len(tensor.dims) - (1 if index == 1 else 2))
            yield node, index, axis, numpy_helper.to_array(tensor)
            break


def variant(model, form: str, bits: int = 8):
    """(a copy of the model in the given form, how many nodes it changed)."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    before, replaced = {}, []
    for k, (node, index, axis, weight) in enumerate(list(linear_nodes(out))):
        name, extra = f"larvatus.{k}", []
        w, scale = integers(weight, axis, bits)
        if form == "qdq":
            out.graph.initializer.extend([
                numpy_helper.from_array(w.astype(np.int8), f"{name}.int8"),
                numpy_helper.from_array(scale.reshape(-1), f"{name}.scale")])
            extra.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [f"{name}.w"], axis=axis))
        else:
            out.graph.initializer.append(numpy_helper.from_array(w * scale, f"{name}.w"))
        replaced.append(node.input[index])
        node.input[index] = f"{name}.w"
        if form == "exact":
            most = bound(w, axis)
            extra += _rounded_activation(out, node, 1 - index, name, most) if most >= 127 else []
        before[node.output[0]] = extra
    nodes = [m for n in out.graph.node for m in (*before.get(n.output[0], ()), n)]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    _drop_unused(out, set(replaced))
    return out, len(replaced)


def _rounded_activation(out, node, index, name, most):
    """Nodes that round the activation operand to the integers that the exact path would see."""
    x = node.input[index]
    axes = {"MatMul": [-1 if index == 0 else -2]}.get(node.op_type)
    out.graph.initializer.extend([
        numpy_helper.from_array(np.float32(most), f"{name}.A"),
        numpy_helper.from_array(np.float32(np.finfo(np.float32).tiny), f"{name}.tiny")])
    reduce = {"keepdims": 1, **({"axes": axes} if axes else {})}
    steps = [("Abs", [x], "abs", {}), ("ReduceMax", [f"{name}.abs"], "max", reduce),
             ("Max", [f"{name}.max", f"{name}.tiny"], "peak", {}), ("Div", [f"{name}.A", f"{name}.peak"], "inverse", {}),
             ("Mul", [x, f"{name}.inverse"], "scaled", {}), ("Round", [f"{name}.scaled"], "q", {}),
             ("Div", [f"{name}.q", f"{name}.inverse"], "x", {})]
    node.input[index] = f"{name}.x"
    return [helper.make_node(kind, inputs, [f"{name}.{o}"], **attributes) for kind, inputs, o, attributes in steps]


def _drop_unused(model, names) -> None:
    used = {i for n in model.graph.node for i in n.input}
    for name in names - used:
        for i, tensor in enumerate(model.graph.initializer):
            if tensor.name == name:
                del model.graph.initializer[i]
                break
