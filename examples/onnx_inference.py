"""Embed images with an exported model: onnxruntime, NumPy and Pillow, nothing of this package.

python onnx_inference.py visible.onnx a.jpg b.jpg    prints how alike the images are

The model's metadata says how a file becomes pixels; `pixels` does just that, bit for bit.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(path: str, facts: dict[str, str]) -> np.ndarray:
    """One image file as the model takes it: (3, height, width) bytes."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):  # gray of 16 bits: the upper eight
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, (*map(int, facts["background"].split(",")), 255))
        image = Image.alpha_composite(background, image.convert("RGBA"))
    size = (int(facts["width"]), int(facts["height"]))
    image = image.convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    batch = np.stack([pixels(path, facts) for path in sys.argv[2:]])
    (vectors,) = session.run(["vector"], {"input": batch})  # normalization is part of the model
    print(np.round(vectors @ vectors.T, 3))
