#!/usr/bin/env python3
"""Tests of the scripts themselves: python3 scripts/tests.py"""
import io
import json
import pickle
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import environment  # noqa: E402
from tools.cache import Cache, FetchError, fail  # noqa: E402


class Layers(unittest.TestCase):
    """The fast numpy evaluation against the oracle's plain sums, and that it can fail."""

    def cases(self):
        import oracle
        draw = oracle.Draw("layers")
        for i in range(120):
            layer = oracle.random_conv(draw, i) if i % 2 else oracle.random_matmul(draw, i)
            planes = [[draw.between(-127, 127) for _ in range(layer.weights)] for _ in range(1 + i % 2)]
            yield layer, planes, 5, [draw.between(-500, 500) for _ in range(layer.inputs)]

    @staticmethod
    def dumped(layer, planes, shift, q):
        import numpy as np
        import oracle
        weights = oracle.combine(planes, shift)
        y = [v - oracle.P if v > oracle.P // 2 else v for v in oracle.apply(layer, weights, q)]
        if isinstance(layer, oracle.Conv):
            spec = {"op": "conv", "groups": layer.groups, "in": layer.channels, "out": layer.out, "input": list(layer.size),
                    "kernel": layer.kernel, "stride": layer.stride, "dilation": layer.dilation, "pads": layer.pads}
        else:
            spec = {"op": "matmul", "side": layer.side, "groups": layer.groups, "rows": layer.rows, "inner": layer.inner,
                    "columns": layer.columns}
        spec = {"name": "it", "shift": shift, **spec}
        arrays = {"0.spec": np.frombuffer(json.dumps(spec).encode(), np.uint8), "0.q": np.array(q, np.int32),
                  "0.y": np.array(y, np.int32)}
        arrays.update({f"0.w{j}": np.array(p, np.int8) for j, p in enumerate(planes)})
        return arrays

    def found(self, arrays):
        import numpy as np
        import layers
        with tempfile.TemporaryDirectory() as tmp:
            np.savez(Path(tmp) / "dump.npz", **arrays)
            return [layers.problems(*entry) for entry in layers.read(Path(tmp) / "dump.npz")]

    def test_equals_the_oracle(self):
        for case in self.cases():
            self.assertEqual(self.found(self.dumped(*case)), [[]])

    def test_one_altered_answer_is_found(self):
        for case in list(self.cases())[:20]:
            arrays = self.dumped(*case)
            arrays["0.y"][-1] += 1
            (problem,), = self.found(arrays)
            self.assertIn(f"1 of {arrays['0.y'].size} answers differ", problem)

    def test_an_input_beyond_the_bound_is_found(self):
        layer, planes, shift, q = next(c for c in self.cases() if any(c[1][0]))
        arrays = self.dumped(layer, planes, shift, q)
        arrays["0.q"][0] = 2**15
        self.assertTrue(any("the weights allow" in p for p in self.found(arrays)[0]))

    def test_weights_are_those_of_the_model(self):
        import layers
        import numpy as np
        from tools import quantise
        from tools.graph import Graph
        rng = np.random.default_rng(3)
        conv, dense, token = rng.standard_normal((4, 3, 3, 3)), rng.standard_normal((5, 4)), rng.standard_normal((6, 7))
        g = Graph("weights")
        x = g.conv(g.input("x", [1, 3, 3, 3]), conv, None, "c")
        g.rename(g.gemm(g.op("Flatten", [x]), dense, np.zeros(5), "d"), "out")
        g.matmul(g.input("t", [1, 2, 6]), token, np.zeros(7), "tokens")
        g.output("out", [1, 5])
        g.output("tokens", [1, 2, 7])
        with tempfile.TemporaryDirectory() as tmp:
            g.save(Path(tmp) / "m.onnx")
            known = layers.model_weights(Path(tmp) / "m.onnx", 8)
        self.assertEqual(len(known), 3)
        spec = {"name": "t", "op": "matmul", "side": "right", "groups": 1, "rows": 2, "inner": 6, "columns": 7}
        plane, _ = quantise.integers(token.astype(np.float32), 1, 8)
        right = layers.Layer("0", spec, [plane.astype(np.int8)])
        self.assertIn(right.by_channel().astype(np.int16).tobytes(), known)
        part = layers.Layer("0", {**spec, "columns": 3}, [plane[:, 2:5].astype(np.int8)])
        self.assertTrue(layers.are_known(part, known))
        apart = layers.Layer("0", {**spec, "columns": 3}, [plane[:, [2, 4, 5]].astype(np.int8)])
        self.assertFalse(layers.are_known(apart, known))
        spec = {"name": "c", "op": "conv", "groups": 1, "in": 3, "out": 4, "input": [3, 3], "kernel": [3, 3]}
        plane, _ = quantise.integers(conv.astype(np.float32), 0, 8)
        self.assertIn(layers.Layer("0", spec, [plane.astype(np.int8)]).by_channel().astype(np.int16).tobytes(), known)
        plane.flat[0] += 1
        wrong = layers.Layer("0", spec, [plane.clip(-127, 127).astype(np.int8)])
        self.assertFalse(layers.are_known(wrong, known))


class Quantise(unittest.TestCase):
    def test_rounds_half_to_even_per_channel(self):
        import numpy as np
        from tools import quantise
        w = np.array([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0], [-254, 1, 3, 5]], np.float32)
        q, scale = quantise.integers(w, 0, 8)
        self.assertEqual(q.tolist(), [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 0, 2, 2]])
        self.assertEqual(scale.ravel().tolist(), [1, 1, 2])

    def test_bound_is_the_largest_that_cannot_wrap(self):
        import numpy as np
        from tools import quantise
        w = np.full((2, 1000), 127, np.float32)
        most = quantise.bound(w, 0)
        self.assertLessEqual(most * 127000, (quantise.P - 1) // 2)
        self.assertGreater((most + 1) * 127000, (quantise.P - 1) // 2)
        self.assertEqual(quantise.bound(np.zeros((2, 3), np.float32), 0), 2**15 - 1)


class Checkpoints(unittest.TestCase):
    @staticmethod
    def archive(tree_pickle: bytes, storage: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as z:
            z.writestr("m/data.pkl", tree_pickle)
            z.writestr("m/data/0", storage)
        return out.getvalue()

    @staticmethod
    def tensor(offset: int, size, stride) -> bytes:
        """The pickle of {"w": a float tensor over storage 0 of six numbers}, assembled by opcodes."""
        ints = lambda v: b"(" + b"".join(b"K" + bytes([n]) for n in v) + b"t"  # noqa: E731
        persistent = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ"
        return (b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + persistent + b"K" + bytes([offset]) +
                ints(size) + ints(stride) + b"\x89}tRs.")

    def test_strides_are_honoured(self):
        import numpy as np
        from tools import torch_pickle
        data = np.arange(6, dtype=np.float32)
        loaded = torch_pickle.load(self.archive(self.tensor(0, (2, 3), (1, 2)), data.tobytes()))
        self.assertEqual(loaded["w"].tolist(), data.reshape(3, 2).T.tolist())

    def test_a_tensor_outside_its_storage_is_refused(self):
        import numpy as np
        from tools import torch_pickle
        data = np.arange(6, dtype=np.float32).tobytes()
        with self.assertRaisesRegex(ValueError, "outside its storage"):
            torch_pickle.load(self.archive(self.tensor(1, (2, 3), (1, 2)), data))

    def test_other_classes_are_refused(self):
        from tools import torch_pickle
        with self.assertRaisesRegex(pickle.UnpicklingError, "not a tensor"):
            torch_pickle.load(self.archive(pickle.dumps(print, protocol=2), b""))


class Outputs(unittest.TestCase):
    def test_layouts_of_an_npz(self):
        import compare
        import numpy as np
        a, b = np.ones((1, 4)), np.zeros((1, 4))
        with tempfile.TemporaryDirectory() as tmp:
            path = Path(tmp) / "o.npz"
            for arrays in ({"y": np.stack([a, b])}, {"0/y": a, "1/y": b}):
                np.savez(path, **arrays)
                got = compare.read_outputs(path, ["y"], 2)
                self.assertEqual([g[0].tolist() for g in got], [a.tolist(), b.tolist()])
            with self.assertRaises(FetchError):
                compare.read_outputs(path, ["z"], 2)

    def test_a_network_that_went_wrong_has_infinite_error(self):
        import compare
        import numpy as np
        one = [[np.ones(3)]]
        self.assertEqual(compare.relative_l2([[np.array([1, 1, np.nan])]], one), float("inf"))
        self.assertAlmostEqual(compare.relative_l2([[np.full(3, 1.5)]], one), 0.5)


class Text(unittest.TestCase):
    def test_longest_piece_first(self):
        from tools.wordpiece import Tokeniser
        t = Tokeniser("[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\nunm\n##mask\n##ask\n##ed\n.\n")
        self.assertEqual(t.inputs("Unmasked.", 8)["input_ids"].tolist(), [[2, 5, 7, 8, 9, 3, 0, 0]])
        self.assertEqual(t.inputs("zzz", 4)["input_ids"].tolist(), [[2, 1, 3, 0]])

    def test_greedy_ctc(self):
        import numpy as np
        from tools import ocr
        scores = np.eye(4)[[1, 1, 0, 1, 2, 0, 0, 3]]
        self.assertEqual(ocr.read(scores, ["", "a", "b", " "]), "aab ")


class Links(unittest.TestCase):
    def test_a_connection_is_shaped_from_the_first_call_on(self):
        from shape import UntilCall
        frame = lambda kind, head, words: (bytes([kind, 0]) + len(head).to_bytes(2, "little")  # noqa: E731
                                           + (len(words) // 4).to_bytes(4, "little") + head + words)
        # A payload full of what looks like calls.
        before = frame(1, b"hello!", b"") + frame(3, bytes(12), bytes([4, 0, 0, 0]) * 50) + frame(2, b"\4" * 44, b"")
        call = frame(4, bytes(12), bytes(40))
        for step in (1, 3, 7, 8, 64, 10_000):
            state, stream = UntilCall(True), before + call
            for at in range(0, len(stream), step):
                self.assertEqual(state.called, at >= len(before) + 8)
                state.see(stream[at:at + step])
                if state.called:
                    break
            self.assertTrue(state.called)
            # Not a byte too early.
            self.assertLessEqual(len(before), at + step)
        self.assertTrue(UntilCall(False).called)

    def test_a_way_is_busy_for_as_long_as_its_bytes_take(self):
        from shape import Way
        way = Way(1e6, 0.0)
        first = way.send(1000)
        self.assertAlmostEqual(way.send(500_000) - first, 0.5)

    def test_the_floor_is_bytes_by_bandwidth_and_trips(self):
        from home import floor, quantile
        row = {"up": 1e6, "down": 3e6, "round_trips": 50, "mbit": 100.0, "trip_ms": 5.0}
        self.assertAlmostEqual(floor(row), 320 + 250)
        self.assertEqual((quantile([3, 1, 2], 0.5), quantile([3, 1, 2], 0.95)), (2, 3))


class Stamps(unittest.TestCase):
    def test_a_step_is_fresh_only_with_its_recipe_and_files(self):
        with tempfile.TemporaryDirectory() as tmp:
            cache = Cache(Path(tmp).resolve())
            made = cache.models / "m"
            made.write_text("x")
            cache.stamp("s", "recipe", [made])
            self.assertTrue(cache.is_fresh("s", "recipe"))
            self.assertFalse(cache.is_fresh("s", "other"))
            made.unlink()
            self.assertFalse(cache.is_fresh("s", "recipe"))


if __name__ == "__main__":
    try:
        environment.enter()
    except FetchError as e:
        sys.exit(fail(e))
    unittest.main()
