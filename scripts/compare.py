#!/usr/bin/env python3
"""Compares what Larvatus answers with ONNX Runtime's float answer, and with references of equal weights.

    python3 scripts/compare.py accuracy [--larvatus BIN | --outputs DIR | --simulate] [--preset slalom]
                                        [--bits 8|12] [--models a,b] [--limit N] [--json] [--cache DIR]
    python3 scripts/compare.py int8-reference MODEL OUT.onnx [--form rounded|qdq|exact] [--bits 8|12]

`accuracy` runs the binary on the samples of models.json (default target/release/larvatus), or reads
DIR/MODEL.npz that it wrote before, or simulates the integer network in ONNX Runtime. Per model it prints
relative L2 errors over all samples and checks what the project promises; exit code 1 if a promise is broken.
A .npz holds per output NAME either one array with a leading index per sample, or keys `INDEX/NAME`.
`int8-reference` writes the variant of a model that tools/quantise.py describes.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import environment  # noqa: E402
from tools.cache import ROOT, Cache, FetchError, default_dir, fail  # noqa: E402

SPEED = ["vgg16", "resnet18", "resnet50", "resnet101", "resnet152", "mobilenetv1", "mobilenetv2", "vit-b16", "vit-ti16",
         "bert-base", "gpt2-small"]
# Networks so deep that the error is reported, not promised.
REPORTED = ["resnet101", "resnet152"]


# -- where the answers come from ---------------------------------------------------------------

def run_larvatus(args, path: Path, inputs, out: Path) -> None:
    """One call for all samples: each `--input NAME=FILE` that repeats a name begins the next inference."""
    import numpy as np
    with tempfile.TemporaryDirectory() as tmp:
        command = [str(args.larvatus), "run", str(path), "--output", str(out)]
        if args.bits == 12:
            policy = Path(tmp) / "wide.toml"
            policy.write_text('weights = "wide"\n')
            command += ["--policy", str(policy)]
        else:
            command += ["--preset", args.preset]
        for i, sample in enumerate(inputs):
            for j, (name, array) in enumerate(sample.items()):
                file = Path(tmp) / f"{i}-{j}.npy"
                np.save(file, array)
                command += ["--input", f"{name}={file}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as e:
            raise FetchError(f"cannot run {args.larvatus}: {e.strerror}; build it with cargo build --release") from e
    if done.returncode:
        raise FetchError(f"larvatus run {path.name} ended with code {done.returncode}: {done.stderr.strip()}")


def read_outputs(path: Path, names, count: int) -> list:
    """[[arrays in the order of names]] per sample from an .npz of either layout."""
    import numpy as np
    try:
        with np.load(path) as z:
            arrays = dict(z)
    except OSError as e:
        raise FetchError(f"cannot read {path}: {e.strerror or e}; let larvatus write it with --output") from e
    results = []
    for i in range(count):
        one = []
        for name in names:
            if f"{i}/{name}" in arrays:
                one.append(arrays[f"{i}/{name}"])
            elif name in arrays and count == 1:
                one.append(arrays[name])
            elif name in arrays and len(arrays[name]) == count:
                one.append(arrays[name][i])
            else:
                raise FetchError(f"{path.name} has no output {name} for sample {i}; it holds {', '.join(sorted(arrays)[:6])}")
        results.append(one)
    return results


def answers(args, cache, name, e, model, inputs) -> list:
    from tools import catalogue, quantise
    names = [o["name"] for o in e["outputs"]]
    if args.simulate:
        return catalogue.outputs(cache, e, args.limit, quantise.variant(model, "exact", args.bits)[0].SerializeToString())
    if args.outputs:
        return read_outputs(args.outputs / f"{name}.npz", names, len(inputs))
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "out.npz"
        run_larvatus(args, cache.root / e["path"], inputs, out)
        return read_outputs(out, names, len(inputs))


# -- measures ----------------------------------------------------------------------------------

def relative_l2(got, reference) -> float:
    """‖got − reference‖ / ‖reference‖ over all outputs of all samples; infinite where shapes or values are unusable."""
    import numpy as np
    over, under = 0.0, 0.0
    for g, r in zip(got, reference):
        for a, b in zip(g, r):
            if a.size != b.size:
                return float("inf")
            a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
            over, under = over + ((a - b) ** 2).sum(), under + (b ** 2).sum()
    error = float(np.sqrt(over / under)) if under else float("inf")
    return error if np.isfinite(error) else float("inf")


def compare_model(args, cache, name, e) -> dict:
    import onnx
    from tools import catalogue, quantise
    inputs = catalogue.inputs_of(cache, e, args.limit)
    model = onnx.load(cache.root / e["path"])
    reference = catalogue.outputs(cache, e, args.limit)
    row = {"model": name, "samples": len(inputs), "promises": {}}
    got = answers(args, cache, name, e, model, inputs)
    if [len(g) for g in got] != [len(r) for r in reference]:
        raise FetchError(f"{name}: the .npz holds other outputs than the model has")
    row["l2_float"] = relative_l2(got, reference)
    linear = len(list(quantise.linear_nodes(model)))
    if linear:
        rounded = quantise.variant(model, "rounded", args.bits)[0].SerializeToString()
        rounded = catalogue.outputs(cache, e, args.limit, rounded)
        row["l2_same_weights"] = relative_l2(got, rounded)
        opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        if args.bits == 8:
            # Before opset 13 no node dequantises by channel; then the weights come dequantised.
            qdq = rounded if opset < 13 else catalogue.outputs(
                cache, e, args.limit, quantise.variant(model, "qdq")[0].SerializeToString())
            row["l2_qdq"] = relative_l2(qdq, reference)
    promises(args, cache, name, e, row, got, reference, inputs)
    return row


def promises(args, cache, name, e, row, got, reference, inputs) -> None:
    """Fills `row["promises"]` with {what is promised: whether it holds}, and the figures behind it."""
    from tools import images, ocr, wordpiece
    held = row["promises"]
    if name in SPEED:
        if name not in REPORTED and args.bits == 8:
            held["l2 ≤ 1 % against the same weights"] = row["l2_same_weights"] <= 0.01
        if "l2_qdq" in row:
            held["l2 ≤ 1.1 × int8 QDQ"] = row["l2_float"] <= 1.1 * row["l2_qdq"]
        if name == "resnet50" and args.bits == 12:
            held["l2 ≤ 1 % with wide weights"] = row["l2_float"] <= 0.01
    if name in ("efficientnet-lite0", "mnist-cnn", "svhn-cnn"):
        labels = [label for _, label in images.labelled(cache, Path(e["samples"]["images"]).parent.name)]
        top = [int(g[0].argmax()) for g in got]
        float_top = [int(r[0].argmax()) for r in reference]
        row["top1"] = sum(t == label for t, label in zip(top, labels))
        row["top1_float"] = sum(t == label for t, label in zip(float_top, labels))
        row["agree"] = sum(a == b for a, b in zip(top, float_top))
        allowed = len(top) // 20
        held[f"top-1 ≥ float − {allowed}"] = row["top1"] >= row["top1_float"] - allowed
        held[f"agrees on all but {allowed}"] = row["agree"] >= len(top) - allowed
    if name == "ppocr-rec":
        alphabet = ocr.characters(cache.root / e["path"])
        row["texts"] = [ocr.read(g[0].reshape(r[0].shape)[0], alphabet) for g, r in zip(got, reference)]
        held["reads the rendered lines"] = row["texts"] == ocr.LINES[:len(got)]
    if name.startswith("minilm"):
        pairs = [[wordpiece.embedding(o[0].reshape(r[0].shape), x["attention_mask"]) for o in (g, r)]
                 for g, r, x in zip(got, reference, inputs)]
        row["cosine"] = min(float(a @ b) for a, b in pairs)
        least = 0.999 if args.bits == 12 else 0.995
        held[f"cosine ≥ {least}"] = row["cosine"] >= least


# -- printing ----------------------------------------------------------------------------------

def table(rows) -> str:
    head = ["model", "samples", "L2 float", "L2 same weights", "L2 int8 QDQ", "more", "promises"]
    lines = [head]
    percent = lambda v: "-" if v is None else f"{v:.3%}"  # noqa: E731
    for r in rows:
        more = []
        if "top1" in r:
            more.append(f"top-1 {r['top1']}/{r['samples']} (float {r['top1_float']}), agree {r['agree']}")
        if "cosine" in r:
            more.append(f"cosine {r['cosine']:.5f}")
        if "texts" in r:
            more.append(" / ".join(r["texts"]))
        broken = [p for p, ok in r["promises"].items() if not ok]
        verdict = "BROKEN: " + "; ".join(broken) if broken else "held" if r["promises"] else "none made"
        lines.append([r["model"], str(r["samples"]), percent(r["l2_float"]), percent(r.get("l2_same_weights")),
                      percent(r.get("l2_qdq")), ", ".join(more) or "-", verdict])
    widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
    return "\n".join("  ".join(v.ljust(w) for v, w in zip(line, widths)).rstrip() for line in lines)


def accuracy(args) -> int:
    cache = Cache(default_dir())
    entries = cache.catalogue()
    wanted = args.models.split(",") if args.models else [m for m in entries if not m.startswith("silero")]
    missing = [m for m in wanted if m not in entries]
    if missing or not wanted:
        raise FetchError(f"not in {cache.models}/models.json: {', '.join(missing) or 'any model'}; run scripts/fetch.py all")
    rows = []
    for name in wanted:
        rows.append(compare_model(args, cache, name, entries[name]))
        if not args.json:
            print(f"{name}: L2 against float {rows[-1]['l2_float']:.3%}", file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1, ensure_ascii=False) if args.json else table(rows))
    return 1 if any(not ok for r in rows for ok in r["promises"].values()) else 0


def int8_reference(args) -> int:
    import onnx
    from tools import quantise
    from tools.cache import write_atomic
    entries, path = Cache(default_dir()).catalogue(), Path(args.model)
    if args.model in entries:
        path = default_dir() / entries[args.model]["path"]
    if not path.exists():
        raise FetchError(f"{args.model} is neither a file nor a fetched model; run scripts/fetch.py first")
    model, changed = quantise.variant(onnx.load(path), args.form, args.bits)
    write_atomic(args.out, model.SerializeToString())
    print(f"{args.out}: {changed} linear nodes with {args.bits}-bit weights, form {args.form}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cache", type=Path)
    sub = parser.add_subparsers(dest="command", required=True)
    a = sub.add_parser("accuracy")
    source = a.add_mutually_exclusive_group()
    source.add_argument("--larvatus", type=Path, default=ROOT / "target" / "release" / "larvatus")
    source.add_argument("--outputs", type=Path)
    source.add_argument("--simulate", action="store_true")
    a.add_argument("--preset", default="slalom")
    a.add_argument("--models")
    a.add_argument("--limit", type=int)
    a.add_argument("--json", action="store_true")
    r = sub.add_parser("int8-reference")
    r.add_argument("model")
    r.add_argument("out", type=Path)
    r.add_argument("--form", choices=["rounded", "qdq", "exact"], default="rounded")
    for p in (a, r):
        p.add_argument("--bits", type=int, choices=[8, 12], default=8)
        p.add_argument("--cache", type=Path, default=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cache:
        os.environ["LARVATUS_CACHE"] = str(args.cache.resolve())
    try:
        environment.enter()
        return accuracy(args) if args.command == "accuracy" else int8_reference(args)
    except FetchError as e:
        return fail(e)


if __name__ == "__main__":
    sys.exit(main())
