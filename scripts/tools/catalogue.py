"""Entries of `models/models.json`, read from the ONNX files themselves.

name → {path, inputs: [{name, shape, dtype}], outputs: […], preprocessing, samples, labels, licence, source}.
Paths are relative to the cache. A dimension that the file leaves open appears as its symbol; `static` then
says what the samples use. `samples` is a list of {input name: .npy file}, or {"images": CSV of labelled files}.
"""
from pathlib import Path

import numpy as np
import onnx

from .cache import PACKAGES, Cache


def _values(values, skip=()):
    out = []
    for v in values:
        if v.name in skip:
            continue
        t = v.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in t.shape.dim]
        out.append({"name": v.name, "shape": shape, "dtype": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(t.elem_type)).name})
    return out


def entry(cache: Cache, path: Path, *, source: str, preprocessing=None, samples=None, static=None, labels=None,
          note=None) -> dict:
    graph = onnx.load(path, load_external_data=False).graph
    weights = {i.name for i in graph.initializer}
    package = source.split("==")[0]
    e = {
        "path": str(path.relative_to(cache.root)),
        "inputs": _values(graph.input, weights),
        "outputs": _values(graph.output),
        "licence": PACKAGES[package][2] if package in PACKAGES else "MIT OR Apache-2.0",
        "source": source,
    }
    for key, value in (("static", static), ("preprocessing", preprocessing), ("samples", samples), ("labels", labels),
                       ("note", note)):
        if value is not None:
            e[key] = value
    return e


def save_sample(cache: Cache, model: str, index: int, arrays: dict) -> dict:
    """Writes one inference's inputs under `samples/MODEL/`; returns {input: path}."""
    out = {}
    for name, array in arrays.items():
        path = cache.root / "samples" / model / f"{index:02d}-{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_name("." + path.name)
        with open(tmp, "wb") as f:
            np.save(f, array)
        tmp.replace(path)
        out[name] = str(path.relative_to(cache.root))
    return out
