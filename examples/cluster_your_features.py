"""Cluster features of your own, without labels and without Ray, and score a retrieval.

    python examples/cluster_your_features.py [FEATURES.npy]

FEATURES.npy holds (N, D) float32 rows of any encoder; without it, 60 identities are made up.
"""

import sys

import numpy as np

from reid_core import centroids, cluster, retrieval_metrics

rng = np.random.default_rng(0)
pids = np.repeat(np.arange(60), 20)
features = rng.normal(size=(60, 256))[pids] + 1.5 * rng.normal(size=(1200, 256))
if len(sys.argv) > 1:
    features, pids = np.load(sys.argv[1]), None
features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)

labels = cluster(features, k1=30, k2=6, eps=0.6, min_samples=4)  # -1 = outlier
prototypes = centroids(features, labels)
print(f"{len(features)} rows: {len(prototypes)} clusters, {np.mean(labels < 0):.1%} outliers")

if pids is not None:
    query, gallery = slice(0, None, 2), slice(1, None, 2)
    similarity = features[query] @ features[gallery].T
    scores = retrieval_metrics(similarity, pids[query], pids[gallery])
    print(f"Rank-1 {scores.cmc[0]:.1%}, mAP {scores.mAP:.1%}")
