"""The machines of the connected cluster that new work can be placed on."""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state

_GRAIN = 4  # decimals that Ray counts resources in


def alive() -> list[dict[str, Any]]:
    """Of `ray.nodes`, those that are alive, even where they are being taken away."""
    return [node for node in ray.nodes() if node["Alive"]]


def usable() -> list[dict[str, Any]]:
    """Of `alive`, those that are not being taken away: Ray places nothing there."""
    leaving = state.get_draining_nodes()
    return [node for node in alive() if node["NodeID"] not in leaving]


def has(resource: str) -> bool:
    """Whether a machine that is alive has some of a resource, even one that is being taken away.

    Those are told of before others come in their place: what a run is trained on follows from this,
    how much of it fits from `usable`.
    """
    return any(node["Resources"].get(resource, 0) > 0 for node in alive())


def total(resource: str) -> float:
    """What the usable machines have of a resource, taken or not."""
    return float(sum(node["Resources"].get(resource, 0) for node in usable()))


def free(resource: str) -> dict[str, float]:
    """By node id, what nobody has reserved of a resource; as of a moment ago.

    What asks for more than that on one node is not refused by Ray: it waits until others end.
    """
    return {
        node: round(amounts.get(resource, 0.0), _GRAIN)
        for node, amounts in state.available_resources_per_node().items()
    }
