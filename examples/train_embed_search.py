"""Train, embed and search from Python: `python examples/train_embed_search.py OUT`.

Draws a small world, trains the demo's recipe in a few steps and asks with one infrared image.
"""

import sys
from pathlib import Path

from pipelines import evaluate, load_config, open_encoder, train
from reid_core.datasets import synthetic

out = Path(sys.argv[1])
synthetic.write(out / "world", num_identities=60, seed=0, layout="sysu")
config = load_config(
    "demo.yaml",
    {
        "data.root": str(out / "world"),
        "cclnet.image_to_text": 0,  # the images' stage alone
        "cclnet.align.epochs": 2,
        "cclnet.align.batches_per_epoch": 10,
        "trainer.num_workers": 1,
    },
)
backend = "local" if "--local" in sys.argv else "ray"  # local: this process, no Ray
summary = train(config, out=out / "run", backend=backend)
print("Rank-1 before and after:", *(summary["rows"][row]["rank1"] for row in ("start", "final")))
print("protocols:", *evaluate(out / "run"))

encoder = open_encoder(out / "run")
gallery = sorted((out / "world").glob("cam1/*/*.jpg"))
query = sorted((out / "world").glob("cam3/*/*.jpg"))[0]
similarity = (
    encoder.embed_images([query], modality="infrared")
    @ encoder.embed_images(gallery, modality="visible").T
)
best = similarity[0].argmax()
print(f"{query.parent.name} is most like {gallery[best].parent.name} ({similarity[0, best]:.2f})")
