"""Unpacks the operator cases of the onnx package. Standard library only.

The plain cases are those whose name does not contain `_expanded`: 1325 of 1765 in onnx 1.22.0
(the others are the same operators written out as functions). Later packages ship none.
"""
import shutil
import tempfile
import zipfile
from pathlib import Path

from .cache import Cache, FetchError, say

PREFIX = "onnx/backend/test/data/node/"
PLAIN_CASES = 1325


def unpack(cache: Cache, wheel: Path) -> None:
    """Writes `onnx-node/CASE/model.onnx` and `onnx-node/CASE/test_data_set_0/{input,output}_N.pb`."""
    target = cache.root / "onnx-node"
    with tempfile.TemporaryDirectory(dir=cache.root) as tmp, zipfile.ZipFile(wheel) as z:
        top, cases = Path(tmp) / "onnx-node", set()
        for name in z.namelist():
            case, _, rest = name[len(PREFIX):].partition("/")
            if not name.startswith(PREFIX) or "_expanded" in case or not rest or rest.endswith("/"):
                continue
            if ".." in rest.split("/"):
                raise FetchError(f"{wheel.name} holds the unsafe path {name}; do not use this file")
            cases.add(case)
            path = top / case / rest
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(z.read(name))
        if len(cases) != PLAIN_CASES:
            raise FetchError(f"{wheel.name} holds {len(cases)} plain cases, not {PLAIN_CASES}; fetch onnx 1.22.0")
        shutil.rmtree(target, ignore_errors=True)
        top.replace(target)
    say(f"  {len(cases)} cases in {target}")
