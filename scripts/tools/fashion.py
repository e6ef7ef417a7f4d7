"""Fashion-MNIST, complete: the four IDX files out of Debian's package, without installing it.

An archive of Debian is an `ar` of three members, of which `data.tar.xz` holds the files.
"""
import hashlib
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

from .cache import Cache, FetchError, say, write_atomic

PACKAGE = "dataset-fashion-mnist"
FILES = {
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
}


def unpack(cache: Cache) -> None:
    for name, data in members(archive(cache)).items():
        write_atomic(cache.root / "fashion-mnist" / name, data)


def archive(cache: Cache) -> Path:
    found = sorted(cache.downloads.glob(f"{PACKAGE}_*.deb"))
    if not found:
        say(f"  download {PACKAGE}")
        with tempfile.TemporaryDirectory(dir=cache.downloads) as tmp:
            try:
                done = subprocess.run(["apt-get", "download", PACKAGE], cwd=tmp, capture_output=True, text=True)
                why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            except OSError as e:
                why = str(e)
            got = list(Path(tmp).glob("*.deb"))
            if not got:
                raise FetchError(f"cannot download {PACKAGE}: {why}; put Debian's package into {cache.downloads} by hand")
            got[0].rename(cache.downloads / got[0].name)
        found = sorted(cache.downloads.glob(f"{PACKAGE}_*.deb"))
    return found[-1]


def members(path: Path) -> dict:
    """The files, each with the digest that it should have."""
    with open(path, "rb") as f:
        data = f.read()
    at, files = 8, {}
    while data[:8] == b"!<arch>\n" and at + 60 <= len(data):
        name, size = data[at:at + 16].strip().rstrip(b"/"), int(data[at + 48:at + 58])
        if name == b"data.tar.xz":
            with tarfile.open(fileobj=io.BytesIO(data[at + 60:at + 60 + size])) as tar:
                for member in tar:
                    if (base := Path(member.name).name) in FILES:
                        files[base] = tar.extractfile(member).read()
        at += 60 + size + size % 2
    for name, digest in FILES.items():
        if hashlib.sha256(files.get(name, b"")).hexdigest() != digest:
            raise FetchError(f"{path} does not hold the {name} that is expected; delete it and fetch again")
    return files
