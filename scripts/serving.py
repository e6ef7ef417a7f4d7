#!/usr/bin/env python3
"""Stock clients against `larvatus serve`, as docs/serving.md tells it.

    cargo build --release --workspace
    python3 scripts/serving.py clients [--larvatus target/release/larvatus] [--preset local-exact] [--samples 5]
    python3 scripts/serving.py fuzz    [--larvatus …] [--examples 100] [--seed 1]

`clients`: tritonclient as PyPI has it, over HTTP and over gRPC, asks for EfficientNet-Lite0 on photographs and for PP-OCR's
recognition on lines of text. Its answers must be, bit for bit, those of `larvatus run` under the same preset, and
name what onnxruntime names: the same class, the same characters.

`fuzz`: schemathesis draws requests from the service's own OpenAPI document; an answer of 5xx, or one that the document does
not know, fails. Runs in an environment of its own inside the cache.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import environment  # noqa: E402
from tools.cache import Cache, FetchError, default_dir, fail, say  # noqa: E402

MODELS = ["efficientnet-lite0", "ppocr-rec"]
# A line of text in the size that the samples have.
SHAPES = ["--shape", "ppocr-rec:x=1x3x48x320"]


class Service:
    """`larvatus serve` on ports that are free, with the models of the cache."""

    def __init__(self, args, models, *further):
        self.folder = tempfile.TemporaryDirectory()
        cache = Cache(default_dir())
        for name in models:
            Path(self.folder.name, f"{name}.onnx").symlink_to(cache.root / "models" / f"{name}.onnx")
        listen = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
        command = [args.larvatus, "serve", self.folder.name, *listen, "--preset", args.preset, "--allow-unlocked", *further]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [self.process.stdout.readline() for _ in range(2)]
        if not all(line.startswith("serving on ") for line in lines):
            raise FetchError(f"the service did not start: {lines}")
        self.http, self.grpc = (line.split()[2].rstrip(":") for line in lines)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        status = self.process.wait(timeout=60)
        self.folder.cleanup()
        if status != 0:
            raise FetchError(f"the service ended with status {status}")


def wait_until_ready(client) -> None:
    for _ in range(600):
        if client.is_server_ready():
            return
        time.sleep(0.1)
    raise FetchError("the service is not ready after a minute")


def samples(cache, name, count):
    """Inputs of a model: photographs as the model wants them, or the catalogue's own samples."""
    import numpy as np
    from tools import images
    if name == "efficientnet-lite0":
        files = sorted((cache.root / "images" / "imagenet").glob("*.jpg"))[:count]
        return [images.classify_input(file) for file in files]
    return [np.load(file) for file in sorted((cache.root / "samples" / name).glob("*.npy"))[:count]]


def by_run(args, cache, name, input_name, inputs):
    """What `larvatus run` gives."""
    import numpy as np
    with tempfile.TemporaryDirectory() as folder:
        command = [args.larvatus, "run", str(cache.root / "models" / f"{name}.onnx"), "--preset", args.preset, "--json"]
        for at, values in enumerate(inputs):
            np.save(f"{folder}/{at}.npy", values)
            command += ["--input", f"{input_name}={folder}/{at}.npy"]
        out = f"{folder}/out.npz"
        done = subprocess.run([*command, "--output", out], capture_output=True, text=True)
        if done.returncode:
            raise FetchError(f"larvatus run {name}: {done.stderr.strip()[-400:]}")
        outputs = np.load(out)
        return [{key.split("/", 1)[-1]: outputs[key] for key in outputs.files
                 if len(inputs) == 1 or key.startswith(f"{at}/")} for at in range(len(inputs))]


def ask(module, client, name, input_name, values, outputs):
    tensor = module.InferInput(input_name, values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    wanted = [module.InferRequestedOutput(output) for output in outputs]
    reply = client.infer(name, [tensor], outputs=wanted)
    return {output: reply.as_numpy(output) for output in outputs}


def named(name, outputs):
    """What an answer says: a class, or the characters of a line."""
    scores = next(iter(outputs.values()))
    best = scores.argmax(-1).reshape(-1)
    if name != "ppocr-rec":
        return int(best[0])
    # Repeated characters and the blank are dropped.
    return [int(c) for at, c in enumerate(best) if c and (at == 0 or c != best[at - 1])]


def clients(args) -> int:
    environment.enter(clients=True)
    import onnxruntime
    import tritonclient.grpc
    import tritonclient.http
    cache = Cache(default_dir())
    faults = 0
    with Service(args, MODELS, *SHAPES) as service:
        http = tritonclient.http.InferenceServerClient(service.http)
        grpc = tritonclient.grpc.InferenceServerClient(service.grpc)
        wait_until_ready(http)
        assert http.is_server_live() and grpc.is_server_live() and grpc.is_server_ready()
        say("model                 samples   HTTP = run   gRPC = run   as onnxruntime names it")
        for name in MODELS:
            about, same = http.get_model_metadata(name), grpc.get_model_metadata(name, as_json=True)
            assert about["inputs"][0]["name"] == same["inputs"][0]["name"]
            assert http.is_model_ready(name) and grpc.is_model_ready(name)
            [port] = about["inputs"]
            outputs = [output["name"] for output in about["outputs"]]
            inputs = samples(cache, name, args.samples)
            inputs = [one for one in inputs if list(one.shape) == port["shape"]]
            if not inputs:
                raise FetchError(f"{name}: no sample of shape {port['shape']}")
            runs = by_run(args, cache, name, port["name"], inputs)
            ort = onnxruntime.InferenceSession(str(cache.root / "models" / f"{name}.onnx"))
            counts = [0, 0, 0]
            for values, run in zip(inputs, runs):
                answers = [ask(tritonclient.http, http, name, port["name"], values, outputs),
                           ask(tritonclient.grpc, grpc, name, port["name"], values, outputs)]
                for way, answer in enumerate(answers):
                    counts[way] += all(answer[o].tobytes() == run[o].tobytes() and answer[o].shape == run[o].shape for o in outputs)
                float_outputs = dict(zip(outputs, ort.run(outputs, {port["name"]: values})))
                counts[2] += named(name, answers[0]) == named(name, float_outputs)
            n = len(inputs)
            say(f"{name:20}  {n:7}   {counts[0]:4} of {n:2}   {counts[1]:4} of {n:2}   {counts[2]:4} of {n:2}")
            faults += sum(n - count for count in counts)
        # What a client gets wrong is told to it as such.
        for module, client in [(tritonclient.http, http), (tritonclient.grpc, grpc)]:
            try:
                import numpy as np
                ask(module, client, MODELS[0], "no such input", np.zeros((1, 3, 224, 224), np.float32), ["logits"])
                faults += 1
            except tritonclient.utils.InferenceServerException as error:
                say(f"a wrong input: {error}")
    return 1 if faults else 0


def fuzz(args) -> int:
    environment.enter(clients=True)
    further = ["--model-control", "--deadline", "10"]
    with Service(args, ["mnist-cnn"], *further) as service:
        import tritonclient.http
        wait_until_ready(tritonclient.http.InferenceServerClient(service.http))
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
                   f"http://{service.http}/openapi.json", "--checks", "not_a_server_error,status_code_conformance,content_type_conformance",
                   "--max-examples", str(args.examples), "--seed", str(args.seed), "--phases", "examples,coverage,fuzzing", "--no-color"]
        # It leaves a folder where it runs.
        return subprocess.run(command, cwd=service.folder.name).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clients", "fuzz"])
    parser.add_argument("--larvatus", default="target/release/larvatus")
    parser.add_argument("--preset", default="local-exact")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    return {"clients": clients, "fuzz": fuzz}[args.what](args)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FetchError as error:
        fail(str(error))
