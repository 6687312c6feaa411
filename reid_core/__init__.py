"""The mathematics of cross-modality person re-identification: no Ray, no process group.

    from reid_core import cluster, centroids, hungarian_pairs, retrieval_metrics

What stands here is loaded when it is first used; everything else is imported from its module:

types        what a sample, a split and a batch are, and the legend of shape letters
method       what a method is to the machinery             methods      one paper a folder
stage        what it does within an epoch                  sampling     PxK epoch plans
datasets     read(root) -> Dataset for each layout; `synthetic` draws identities
images       files -> decoded images                       pixels       compiled loops over them
transforms   decoded images -> augmented uint8 batches     augmentation its settings
text         captions as tokens                            optim        parameter groups, schedules
models       towers with a stem per modality, prompts      losses       functions only
clustering   Jaccard graph, DBSCAN, centroids              knn, jaccard behind it
matching     Hungarian pairs of prototypes                 memory       prototypes and their swap
association  pairs that joint clusters or images name      votes        labels that neighbors name
whitening    prototypes where clusters scatter alike       camera_shift  features without cameras
mining       labels for outliers                           agreement    clusters against identities
protocols    who is query, gallery, ignored                metrics      CMC, AP, INP
reranking    k-reciprocal re-ranking                       calibration  cosine to probability
tracklets    one vector for a track                        near_duplicates  images nearly equal
attribution, attention where an encoder looks              compiled     numba, kept on disk
pretraining, assets the small CLIPs: training, weights
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid_core.clustering import centroids, cluster, jaccard_graph
    from reid_core.matching import hungarian_pairs
    from reid_core.memory import ClusterMemory, swap
    from reid_core.metrics import retrieval_metrics
    from reid_core.types import Batch, Dataset, Modality, Sample, Split

_HOMES = {
    "clustering": ("centroids", "cluster", "jaccard_graph"),
    "matching": ("hungarian_pairs",),
    "memory": ("ClusterMemory", "swap"),
    "metrics": ("retrieval_metrics",),
    "types": ("Batch", "Dataset", "Modality", "Sample", "Split"),
}

__all__ = [
    "Batch",
    "ClusterMemory",
    "Dataset",
    "Modality",
    "Sample",
    "Split",
    "centroids",
    "cluster",
    "hungarian_pairs",
    "jaccard_graph",
    "retrieval_metrics",
    "swap",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"reid_core.{module}"), name)
    raise AttributeError(f"module 'reid_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
