"""Reads the tensors of a PyTorch checkpoint without PyTorch and without running its code.

Promises: only tensors, numbers, strings and containers come out; any other class in the
pickle is an error. Strides are honoured: some checkpoints store their tensors permuted, and
reading such a buffer in order gives a network that looks valid and is wrong.
Source: the legacy (protocol 1001) and zip layouts of `torch.save`.
"""
import collections
import io
import pickle
import struct
import zipfile

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "LongStorage": np.int64,
    "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage:
    def __init__(self, dtype, numel):
        self.dtype, self.numel, self.data = np.dtype(dtype), numel, None


class _Tensor:
    def __init__(self, storage, offset, size, stride):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self) -> np.ndarray:
        item = self.storage.dtype.itemsize
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride))
        if min((0, *self.stride)) < 0 or (0 not in self.size and last >= len(self.storage.data)):
            raise ValueError("a tensor reaches outside its storage")
        view = np.lib.stride_tricks.as_strided(
            self.storage.data[self.offset:], self.size, [s * item for s in self.stride], writeable=False)
        return np.ascontiguousarray(view)


def _rebuild_tensor(storage, offset, size, stride, *_):
    return _Tensor(storage, offset, tuple(size), tuple(stride))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storages):
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module in ("torch", "torch.storage") and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"checkpoint asks for {module}.{name}, which is not a tensor")

    def persistent_load(self, pid):
        kind, storage_type, key, _location, numel = pid[:5]
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        if key not in self.storages:
            self.storages[key] = _Storage(DTYPES[storage_type], numel)
        return self.storages[key]


def load(data: bytes):
    """The checkpoint with every tensor as a contiguous numpy array."""
    storages = {}
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            (entry,) = [n for n in z.namelist() if n.endswith("data.pkl")]
            root = entry[: -len("data.pkl")]
            tree = _Unpickler(io.BytesIO(z.read(entry)), storages).load()
            for key, s in storages.items():
                s.data = np.frombuffer(z.read(f"{root}data/{key}"), s.dtype)
    else:
        f = io.BytesIO(data)
        if _Unpickler(f, {}).load() != MAGIC:
            raise ValueError("not a PyTorch checkpoint")
        for _ in range(2):  # protocol version, description of the machine
            _Unpickler(f, {}).load()
        tree = _Unpickler(f, storages).load()
        for key in _Unpickler(f, {}).load():
            (numel,) = struct.unpack("<q", f.read(8))
            s = storages[key]
            s.data = np.frombuffer(f.read(numel * s.dtype.itemsize), s.dtype)
    return _arrays(tree)


def _arrays(node):
    if isinstance(node, _Tensor):
        return node.array()
    if isinstance(node, dict):
        return {k: _arrays(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [_arrays(v) for v in node]
    return node
