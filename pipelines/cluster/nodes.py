"""The machines of the connected cluster that new work can be placed on."""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state


def usable() -> list[dict[str, Any]]:
    """Of `ray.nodes`, those that are alive and not being taken away: Ray places nothing there."""
    leaving = state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
