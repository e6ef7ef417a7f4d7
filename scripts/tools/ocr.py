"""Text recognition: rendered lines as samples, and reading the network's answer.

Source: the PP-OCRv4 pre- and post-processing of rapidocr-onnxruntime (height 48, values in
[−1, 1], zeros right of the line; greedy CTC with the characters in the model's metadata).
"""
import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

LINES = ["Larvatus prodeo", "masked forward 2147483647", "trusted side 42"]
SIZES = {"ppocr-det": (640, 640), "ppocr-rec": (48, 320), "ppocr-cls": (48, 192)}


def line(text: str, height: int, width: int, margin: int = 6) -> Image.Image:
    """One line of black text on white, as high as the strip and no wider than its text (at most `width`)."""
    size = height - 2 * margin
    while size > 8 and ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(
            text, ImageFont.load_default(size)) > width - 2 * margin:
        size -= 1
    font = ImageFont.load_default(size)
    left, top, right, bottom = (round(v) for v in font.getbbox(text))
    image = Image.new("RGB", (right - left + 2 * margin, height), "white")
    ImageDraw.Draw(image).text((margin - left, (height - bottom - top) // 2), text, "black", font)
    return image


def page(lines, height: int, width: int) -> Image.Image:
    """Lines below each other on a white page."""
    image, step = Image.new("RGB", (width, height), "white"), height // len(lines)
    for i, text in enumerate(lines):
        image.paste(line(text, 48, width), (20, i * step + step // 2 - 24))
    return image


def network_input(image: Image.Image, width: int) -> np.ndarray:
    """[1, 3, height, width] float32, blue first as the networks were trained, in [−1, 1]; zeros right of the image."""
    x = (np.asarray(image, np.float32)[:, :width, ::-1] / 255 - 0.5) / 0.5
    out = np.zeros((1, 3, image.height, width), np.float32)
    out[0, :, :, : x.shape[1]] = x.transpose(2, 0, 1)
    return out


def characters(model_path) -> list:
    """Index → character of the recognition network; 0 is the blank."""
    (text,) = [p.value for p in onnx.load(model_path).metadata_props if p.key == "character"]
    return ["", *text.splitlines(), " "]


def read(scores: np.ndarray, alphabet) -> str:
    """Greedy CTC: the best character of each step, repetitions merged, blanks dropped. scores [steps, characters]."""
    best = scores.argmax(axis=-1)
    kept = [c for i, c in enumerate(best) if c and (i == 0 or c != best[i - 1])]
    return "".join(alphabet[c] for c in kept)
