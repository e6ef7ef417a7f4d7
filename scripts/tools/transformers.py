"""Transformers: MiniLM converted from its checkpoint, and BERT, GPT-2, ViT for measuring speed.

The graphs have the node patterns that exporters write (MatMul + Add on tokens, LayerNormalization,
GELU spelt out). Seeded networks are calibrated layer by layer on a sample input, so that neither
the residual stream explodes nor all tokens become one: queries and keys have standard deviation 2,
which makes attention choose (flat attention averages the tokens away), every branch adds a share of
the stream, the head has outputs of standard deviation 2.5.
Source: the architecture tables of the papers (BERT, GPT-2, ViT) and of sentence-transformers.
"""
import json
import struct

import numpy as np

from . import catalogue, images
from .cache import Cache, default_dir, run_main
from .convnets import IMAGE_SAMPLES
from .graph import Graph

HEAD_STD = 2.5
BRANCH_STD = 0.5
QUERY_STD = 2.0


class Seeded:
    """Weights made up as they are asked for; linear layers are scaled to a given output deviation."""

    def __init__(self, g: Graph, seed: int):
        self.g, self.rng = g, np.random.default_rng(seed)

    def table(self, _name, shape):
        return 0.5 * self.rng.standard_normal(shape, np.float32)

    def norm(self, name, size):
        return (1 + 0.1 * self.rng.standard_normal(size)).astype(np.float32), np.zeros(size, np.float32)

    def linear(self, _name, x, inputs, outputs, std):
        weight = self.rng.standard_normal((inputs, outputs), np.float32)
        seen = np.concatenate([a.reshape(-1, inputs) for a in self.g.watch[x]])
        gain = std / (seen @ weight).std()
        return weight * np.float32(gain), (0.1 * std * self.rng.standard_normal(outputs)).astype(np.float32)


class Stored:
    """Weights of a BERT checkpoint in the safetensors layout (f32 or f16 tensors)."""

    def __init__(self, data: bytes):
        (n,) = struct.unpack("<Q", data[:8])
        self.header = json.loads(data[8:8 + n])
        self.body = memoryview(data)[8 + n:]

    def get(self, name):
        entry = self.header[name]
        dtype = {"F32": np.float32, "F16": np.float16}[entry["dtype"]]
        begin, end = entry["data_offsets"]
        return np.frombuffer(self.body[begin:end], dtype).reshape(entry["shape"]).astype(np.float32)

    def table(self, name, _shape):
        return self.get(f"embeddings.{name}.weight")

    def norm(self, name, _size):
        return self.get(f"{name}.LayerNorm.weight"), self.get(f"{name}.LayerNorm.bias")

    def linear(self, name, _x, _inputs, _outputs, _std):
        return self.get(f"{name}.weight").T, self.get(f"{name}.bias")


class Blocks:
    """Attention and feed-forward blocks over a [1, tokens, width] stream."""

    def __init__(self, g: Graph, weights, tokens: int, width: int, heads: int, epsilon: float):
        self.g, self.weights, self.epsilon = g, weights, epsilon
        self.tokens, self.width, self.heads = tokens, width, heads
        for name, value in (("half", 0.5), ("one", 1), ("sqrt2", 2 ** 0.5), ("tanh.cubic", 0.044715), ("three", 3),
                            ("tanh.gain", (2 / np.pi) ** 0.5), ("head.root", (width // heads) ** 0.5)):
            g.constant(np.float32(value), name)
        g.constant(np.array([1, tokens, heads, width // heads]), "shape.heads")
        g.constant(np.array([1, tokens, width]), "shape.stream")
        g.constant(np.array([width] * 3), "shape.qkv")

    def linear(self, name, x, inputs, outputs, std=1.0):
        return self.g.matmul(x, *self.weights.linear(name, x, inputs, outputs, std), name)

    def norm(self, name, x):
        gain, bias = self.weights.norm(name, self.width)
        return self.g.op("LayerNormalization", [x, self.g.constant(gain, f"{name}.norm.gain"),
                                                self.g.constant(bias, f"{name}.norm.bias")], axis=-1, epsilon=self.epsilon)

    def heads_of(self, x, perm=(0, 2, 1, 3)):
        return self.g.op("Transpose", [self.g.op("Reshape", [x, "shape.heads"])], perm=list(perm))

    def attend(self, q, k, v, mask=None):
        """Softmax(q kᵀ / √d + mask) v for streams [1, tokens, width]."""
        g = self.g
        logits = g.op("MatMul", [self.heads_of(q), self.heads_of(k, (0, 2, 3, 1))])
        logits = g.op("Div", [logits, "head.root"])
        if mask is not None:
            logits = g.op("Add", [logits, mask])
        y = g.op("MatMul", [g.op("Softmax", [logits], axis=-1), self.heads_of(v)])
        return g.op("Reshape", [g.op("Transpose", [y], perm=[0, 2, 1, 3]), "shape.stream"])

    def fused_qkv(self, name, x):
        weight, bias = self.weights.linear(name, x, self.width, 3 * self.width, 1.0)
        sharper = np.repeat(np.float32([QUERY_STD, QUERY_STD, 1]), self.width)
        y = self.g.matmul(x, weight * sharper, bias * sharper, name)
        return self.g.split_op("Split", [y, "shape.qkv"], [f"{name}.{part}" for part in "qkv"], axis=-1)

    def gelu(self, x):
        g = self.g
        y = g.op("Add", [g.op("Erf", [g.op("Div", [x, "sqrt2"])]), "one"])
        return g.op("Mul", [g.op("Mul", [x, y]), "half"])

    def gelu_tanh(self, x):
        g = self.g
        y = g.op("Add", [x, g.op("Mul", [g.op("Pow", [x, "three"]), "tanh.cubic"])])
        y = g.op("Add", [g.op("Tanh", [g.op("Mul", [y, "tanh.gain"])]), "one"])
        return g.op("Mul", [g.op("Mul", [x, "half"]), y])

    def pre_norm(self, name, x, gelu, mask=None):
        """x + attention(norm(x)), then + feed-forward(norm(·)): ViT, GPT-2."""
        g = self.g
        y = self.attend(*self.fused_qkv(f"{name}.qkv", self.norm(f"{name}.1", x)), mask)
        x = g.op("Add", [x, self.linear(f"{name}.out", y, self.width, self.width, BRANCH_STD)])
        y = gelu(self.linear(f"{name}.up", self.norm(f"{name}.2", x), self.width, 4 * self.width))
        x = g.op("Add", [x, self.linear(f"{name}.down", y, 4 * self.width, self.width, BRANCH_STD)])
        g.forget(x, *([mask] if mask in g.watch else []))
        return x

    def post_norm(self, name, x, inner, mask):
        """norm(x + attention(x)), norm(· + feed-forward(·)): BERT."""
        g = self.g
        at = f"{name}.attention"
        q, k, v = (self.linear(f"{at}.self.{p}", x, self.width, self.width, std)
                   for p, std in (("query", QUERY_STD), ("key", QUERY_STD), ("value", 1)))
        y = self.linear(f"{at}.output.dense", self.attend(q, k, v, mask), self.width, self.width, BRANCH_STD)
        x = self.norm(f"{at}.output", g.op("Add", [x, y]))
        y = self.gelu(self.linear(f"{name}.intermediate.dense", x, self.width, inner))
        y = self.linear(f"{name}.output.dense", y, inner, self.width, BRANCH_STD)
        x = self.norm(f"{name}.output", g.op("Add", [x, y]))
        g.forget(x, mask)
        return x


def bert(name, weights_of, layers, tokens, width, heads, inner, vocabulary, epsilon, sample=None):
    """input_ids, attention_mask, token_type_ids [1, tokens] i64 → last_hidden_state [1, tokens, width]."""
    g = Graph(name)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    for i in inputs:
        g.input(i, [1, tokens], np.int64, watch=sample and [sample[i]])
    weights = weights_of(g)
    b = Blocks(g, weights, tokens, width, heads, epsilon)
    g.constant(weights.table("position_embeddings", (512, width))[:tokens], "embeddings.position")
    x = g.op("Gather", [g.constant(weights.table("word_embeddings", (vocabulary, width)), "embeddings.word"), "input_ids"])
    kind = g.op("Gather", [g.constant(weights.table("token_type_embeddings", (2, width)), "embeddings.kind"),
                           "token_type_ids"])
    x = b.norm("embeddings", g.op("Add", [g.op("Add", [x, kind]), "embeddings.position"]))
    g.constant(np.array([1, 2]), "mask.axes")
    g.constant(np.float32(-10000), "mask.least")
    seen = g.op("Unsqueeze", [g.op("Cast", ["attention_mask"], to=1), "mask.axes"])
    mask = g.op("Mul", [g.op("Sub", ["one", seen]), "mask.least"])
    for layer in range(layers):
        x = b.post_norm(f"encoder.layer.{layer}", x, inner, mask)
    g.rename(x, "last_hidden_state")
    g.output("last_hidden_state", [1, tokens, width])
    return g


def gpt2(name, seed, tokens=64, width=768, layers=12, heads=12, vocabulary=50257, sample=None):
    """input_ids [1, tokens] i64 → logits [1, tokens, vocabulary]; the head shares the token table."""
    g = Graph(name)
    g.input("input_ids", [1, tokens], np.int64, watch=[sample["input_ids"]])
    weights = Seeded(g, seed)
    b = Blocks(g, weights, tokens, width, heads, 1e-5)
    table = weights.table("tokens", (vocabulary, width))
    x = g.op("Gather", [g.constant(table, "tokens"), "input_ids"])
    x = g.op("Add", [x, g.constant(weights.table("positions", (1, tokens, width)), "positions")])
    mask = g.constant(np.triu(np.full((1, 1, tokens, tokens), -10000, np.float32), 1), "mask")
    for layer in range(layers):
        x = b.pre_norm(f"h.{layer}", x, b.gelu_tanh, mask)
    x = b.norm("final", x)
    # Logits of the wanted deviation: the last gain takes the scale, the shared table stays as it is.
    seen = g.watch[x][0].reshape(-1, width)
    gain = HEAD_STD / (seen @ table.T).std()
    g.weights["final.norm.gain"] = (g.weights["final.norm.gain"] * gain).astype(np.float32)
    g.watch[x] = [(a * gain).astype(np.float32) for a in g.watch[x]]
    g.constant(np.array([tokens, width]), "shape.rows")
    g.constant(np.array([1, tokens, vocabulary]), "shape.logits")
    y = g.op("Gemm", [g.op("Reshape", [x, "shape.rows"]), "tokens"], "head", transB=1)
    g.op("Reshape", [y, "shape.logits"], "logits")
    g.output("logits", [1, tokens, vocabulary])
    return g


def vit(name, seed, width, layers, heads, photographs):
    """image [1, 3, 224, 224] → logits [1, 1000]; patches of 16×16, a class token, 197 tokens."""
    g = Graph(name)
    x = g.input("image", [1, 3, 224, 224], watch=photographs)
    weights = Seeded(g, seed)
    b = Blocks(g, weights, 197, width, heads, 1e-6)
    x = g.conv(x, weights.rng.standard_normal((width, 3, 16, 16)) / np.sqrt(3 * 256), np.zeros(width), "patches", 16)
    g.constant(np.array([1, width, 196]), "shape.patches")
    x = g.op("Transpose", [g.op("Reshape", [x, "shape.patches"])], perm=[0, 2, 1])
    x = g.op("Concat", [g.constant(weights.table("class", (1, 1, width)), "class"), x], axis=1)
    x = g.op("Add", [x, g.constant(weights.table("positions", (1, 197, width)), "positions")])
    for layer in range(layers):
        x = b.pre_norm(f"blocks.{layer}", x, b.gelu)
    x = b.norm("final", x)
    x = g.op("Gather", [x, g.constant(np.array(0), "first")], axis=1)
    weight = weights.rng.standard_normal((width, 1000), np.float32)
    gain = HEAD_STD / (np.concatenate(g.watch[x]) @ weight).std()
    g.gemm(x, (weight * gain).T, np.zeros(1000), "logits")
    g.output("logits", [1, 1000])
    return g


def token_samples(seed, vocabulary, tokens, count=4):
    """Random tokens; the last sample ends in padding."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        length = tokens if i < count - 1 else tokens * 3 // 4
        mask = (np.arange(tokens) < length)[None].astype(np.int64)
        out.append({"input_ids": rng.integers(1, vocabulary, (1, tokens)) * mask, "attention_mask": mask,
                    "token_type_ids": np.zeros((1, tokens), np.int64)})
    return out


def main(name: str) -> int:
    cache = Cache(default_dir())
    extra, sizes = {}, {"vit-b16": (768, 12, 12), "vit-s16": (384, 12, 6), "vit-ti16": (192, 12, 3)}
    if name in sizes:
        photographs = [images.classify_input(p) for p, _ in images.labelled(cache)[:3]]
        g = vit(name, 16, *sizes[name], photographs)
        extra = IMAGE_SAMPLES
    else:
        samples = token_samples(7, 30522, 128) if name == "bert-base" else [
            {"input_ids": s["input_ids"]} for s in token_samples(8, 50257, 64, 3)[:2]]
        if name == "bert-base":
            g = bert(name, lambda g: Seeded(g, 110), 12, 128, 768, 12, 3072, 30522, 1e-12, samples[0])
        else:
            g = gpt2(name, 124, sample=samples[0])
        extra = {"samples": [catalogue.save_sample(cache, name, i, s) for i, s in enumerate(samples)]}
    path = cache.models / f"{name}.onnx"
    g.save(path)
    catalogue.publish(cache, name, path, source="generated, seeded weights", **extra)
    return 0


if __name__ == "__main__":
    run_main(main)
