"""Where searchers run: beside every worker of a run, or on the nodes' CPUs.

Workers wait for the neighbors, or embed the other modality, so a searcher beside one takes nothing
of Ray's: it sees
the GPU that the worker has reserved, and no other. On a node where the run has no worker, one
searcher asks Ray for a small share of a GPU. More would not help there: Ray gives small shares of
one GPU until it is full, and does not say who holds the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SEARCHER_SHARE = 0.01  # of a GPU: Ray puts those of many runs on one, beside whose worker they fit


@dataclass(frozen=True)
class Place:
    """Where there can be a searcher.

    Attributes:
        node: its id.
        gpu: that a worker of the run holds there; None for cores, or a share of any GPU.
        address: of the node.
        cores: of the node that the searcher may use.
    """

    node: str
    gpu: str | None = None
    address: str = field(default="", compare=False)
    cores: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return self.address if self.gpu is None else f"GPU {self.gpu} of {self.address}"


def has_share(unreserved: float) -> bool:
    """Whether a bank or a searcher finds room on what is left of a node's GPUs.

    Args:
        unreserved: of the node, in GPUs; 1 - 0.9 is a little less than 0.1.
    """
    return unreserved > SEARCHER_SHARE - 1e-6


def on_cpus(nodes: Sequence[Mapping[str, Any]], here: str) -> list[Place]:
    """One on every node but this one, with all of its cores.

    Args:
        nodes: of `ray.nodes`, those that can be used.
        here: id of the node where the features are.
    """
    others = [node for node in nodes if node["NodeID"] != here]
    return [_on(node) for node in others if node["Resources"].get("CPU", 0) >= 1]


def on_gpus(
    nodes: Sequence[Mapping[str, Any]], own: Sequence[str], workers: Mapping[str, Sequence[str]]
) -> list[Place]:
    """One beside each worker of the run, and one on every further node that has GPUs.

    Args:
        nodes: of `ray.nodes`, those that can be used.
        own: id of the node where the features are, and the GPU there that searches without a
            searcher; the node alone where there is none.
        workers: by node id, the GPUs that the run's workers hold.
    """
    result = []
    for node in nodes:
        name, reserved = node["NodeID"], workers.get(node["NodeID"], ())
        beside = [gpu for gpu in reserved if (name, gpu) != tuple(own)]
        result += [_on(node, gpu, of=len(beside)) for gpu in beside]
        if not reserved and name != own[0] and node["Resources"].get("GPU", 0) >= 1:
            result.append(_on(node))
    return result


def seeing(gpu: str) -> dict[str, str]:
    """Environment of a process that sees one GPU of its node, whatever Ray has given it."""
    return {"CUDA_VISIBLE_DEVICES": gpu, "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}


def _on(node: Mapping[str, Any], gpu: str | None = None, *, of: int = 1) -> Place:
    cores = max(1, int(node["Resources"].get("CPU", 1)) // of)
    return Place(node["NodeID"], gpu, node["NodeManagerAddress"], cores)
