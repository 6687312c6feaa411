"""Embed pictures with an exported model: onnxruntime, NumPy and Pillow, nothing of this package.

python onnx_inference.py visible.onnx a.jpg b.jpg    prints how alike the pictures are
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
size = (int(facts["width"]), int(facts["height"]))
images = [
    np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS))
    for path in sys.argv[2:]
]
batch = np.stack(images).transpose(0, 3, 1, 2)  # bytes; normalization is part of the model
(vectors,) = session.run(["vector"], {"input": np.ascontiguousarray(batch)})
print(np.round(vectors @ vectors.T, 3))
