"""Entries of `models/models.json`, read from the ONNX files themselves.

name → {path, inputs: [{name, shape, dtype}], outputs: […], preprocessing, samples, labels, licence, source}.
Paths are relative to the cache. A dimension that the file leaves open appears as its symbol; `static` then
says what the samples use. `samples` is a list of {input name: .npy file}, or {"images": CSV of labelled files}.
"""
from pathlib import Path

import numpy as np
import onnx

from . import images
from .cache import PACKAGES, Cache, FetchError, say
from .graph import session


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


def inputs_of(cache: Cache, e: dict, limit=None) -> list:
    """The samples of an entry as [{input name: array}], photographs preprocessed as it says."""
    samples = e["samples"]
    if isinstance(samples, dict):
        how, labels = e["preprocessing"], cache.root / samples["images"]
        (only,) = e["inputs"]
        _, channels, _, size = only["shape"]
        paths = [p for p, _ in images.labelled(cache, labels.parent.name)][:limit]
        return [{only["name"]: images.classify_input(p, size, how["crop"], how["mean"], how["std"], channels)} for p in paths]
    return [{k: np.load(cache.root / v) for k, v in s.items()} for s in samples[:limit]]


def outputs(cache: Cache, e: dict, limit=None, model=None) -> list:
    """[[output arrays]] of ONNX Runtime on the samples of an entry (or of another version of its model)."""
    run = session(model or cache.root / e["path"])
    return [run.run(None, x) for x in inputs_of(cache, e, limit)]


def check_spread(name: str, results) -> str:
    """A line on the outputs; an error if they are degenerate (not finite, flat, or equal for different inputs)."""
    flat = np.stack([np.concatenate([o.ravel() for o in one]) for one in results]).astype(np.float64)
    spread, across = flat.std(axis=1).mean(), (flat - flat.mean(axis=0)).std()
    if not np.isfinite(flat).all() or not 1e-2 < spread < 1e2 or across < 1e-3:
        raise FetchError(f"{name} came out degenerate (spread {spread:.2g}, between inputs {across:.2g}); "
                         "this is a bug in scripts/tools, please report it")
    return f"{name}: outputs of standard deviation {spread:.2f}, {across:.2f} between inputs"


def publish(cache: Cache, name: str, path: Path, **keys) -> dict:
    """Adds the model to the catalogue after running up to three samples through ONNX Runtime."""
    e = entry(cache, path, **keys)
    say("  " + check_spread(name, outputs(cache, e, 3)))
    cache.add_to_catalogue({name: e})
    return e
