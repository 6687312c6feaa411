"""What every node of the cluster sees, asked by one task on each.

A run needs its data and its run directory under the same path on all nodes, and the same versions
everywhere. Found here in seconds, instead of by a worker that fails an hour later.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster import machine
from pipelines.cluster.nodes import usable
from pipelines.errors import UserError
from pipelines.storage.files import replace_file
from pipelines.storage.shards import location

_PACKAGES = ("crossreid", "torch", "ray", "open_clip_torch", "numpy")
_LOOKED_AT = 100  # names of a folder
_TIMEOUT_S = 60.0  # a first task on a node imports torch


class NotSharedError(UserError):
    """A folder is not the same on all nodes.

    Args:
        text: what the user is told.
        addresses: of the nodes on which it is another, or none.
    """

    def __init__(self, text: str, addresses: tuple[str, ...]) -> None:
        super().__init__(text)
        self.addresses = addresses


@dataclass(frozen=True)
class Node:
    """What one node says about itself.

    Attributes:
        address: of the node.
        reads: it read what the driver wrote into the folder.
        writes: the driver found what it wrote there.
        versions: of Python and the packages that must agree.
        gpus: their names.
        shared_memory_bytes: size of /dev/shm, 0 where there is none.
        memory_bytes: of the node, or of its container.
        free_bytes: free disk space of the folder, 0 where it cannot be seen.
        gpus_of_ray: how many Ray gives away there.
    """

    address: str
    reads: bool
    writes: bool
    versions: dict[str, str]
    gpus: tuple[str, ...]
    shared_memory_bytes: int
    memory_bytes: int
    free_bytes: int
    gpus_of_ray: int = 0


def survey(folder: Path) -> tuple[list[Node], list[str]]:
    """Ask every node that work can be placed on; needs a running Ray.

    Args:
        folder: must be writable here; two small files per node come and go in it.

    Returns:
        The nodes that answered, and of those that did not the addresses, with the reason. A node
        that has gone meanwhile, or is being taken away, is in neither.

    Raises:
        UserError: the folder cannot be written here.
    """
    probe = folder.resolve() / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir(parents=True)
        replace_file(probe / "driver", probe.name)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another folder"
        ) from error
    try:
        asked = {
            _look_around.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(probe, node["NodeManagerAddress"]): node
            for node in usable()
        }
        return _answers(asked, probe)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _answers(
    asked: dict[ray.ObjectRef[tuple[Node, str]], dict[str, Any]], probe: Path
) -> tuple[list[Node], list[str]]:
    """What was answered in time, and who of those that are still there did not answer."""
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT_S)
    result = []
    silent = {asked[task]["NodeID"]: f"nothing within {_TIMEOUT_S:g} s" for task in late}
    for task in done:
        place = asked[task]
        try:
            node, token = ray.get(task)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            silent[place["NodeID"]] = (str(cause).strip() or type(cause).__name__).splitlines()[-1]
            continue
        writes = bool(token) and (probe / token).exists()
        gpus = int(place["Resources"].get("GPU", 0))
        result.append(replace(node, writes=writes, gpus_of_ray=gpus))
    there = {node["NodeID"]: node["NodeManagerAddress"] for node in usable()}
    unheard = [f"{there[name]} ({why})" for name, why in silent.items() if name in there]
    return sorted(result, key=lambda node: node.address), sorted(unheard)


def require_shared(folder: Path) -> None:
    """Refuse to start where a node does not see the folder under its path, or does not answer.

    Where there is one node alone, nothing is asked.

    Raises:
        NotSharedError: names the nodes that do not see it.
        UserError: names the nodes that do not answer.
    """
    if len(usable()) < 2:
        return
    nodes, silent = survey(folder)
    problems = []
    if blind := [node.address for node in nodes if not (node.reads and node.writes)]:
        problems.append(
            f"{folder.resolve()} is not the same folder on {', '.join(blind)}: mount a shared "
            "file system under this path on all nodes, or choose a path on one"
        )
    if silent:
        problems.append(
            f"no answer from {', '.join(silent)}: run the command again, and if it stays so look "
            "into the node's logs (/tmp/ray/session_latest/logs) or take it out of the cluster; "
            "`crossreid doctor` asks all nodes"
        )
    if blind:
        raise NotSharedError("\n".join(problems), tuple(blind))
    if problems:
        raise UserError("\n".join(problems))


def require_data(roots: Sequence[Path]) -> None:
    """Refuse to start where a node lacks data that lies here; nothing is written into it.

    Where there is one node alone, nothing is asked, and no URI is looked at. Nodes that do not
    answer are left to `require_shared`.

    Args:
        roots: folders, or URIs.

    Raises:
        NotSharedError: names the folder, what is missing in it, and the nodes that lack it.
    """
    if len(usable()) < 2:
        return
    names = {root.absolute(): _names(root) for root in roots if "://" not in location(root)}
    if lacking := _lacking(names):
        raise NotSharedError(
            "\n".join(
                f"{path} is here and not on {', '.join(sorted(places))}: data.root and "
                "data.extra_roots must lie under the same path on all nodes. Mount a shared file "
                "system there, or copy the data"
                for path, places in lacking.items()
            ),
            tuple(sorted({place for places in lacking.values() for place in places})),
        )


def _lacking(names: Mapping[Path, Sequence[str]]) -> dict[Path, list[str]]:
    """What nodes lack first of these files, with their addresses."""
    asked = {
        _look_for.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(names): node["NodeManagerAddress"]
        for node in usable()
    }
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT_S)
    result: dict[Path, list[str]] = {}
    for task in done:
        try:
            missing = ray.get(task)
        except ray.exceptions.RayError:
            continue
        if missing is not None:
            result.setdefault(missing, []).append(asked[task])
    return result


def _names(root: Path) -> list[str]:
    """Some folders in a folder, or files where it has none; hidden ones may come and go.

    Beside folders a file may be an archive that one node has unpacked.
    """
    if not root.is_dir():
        return []
    there = [x for x in islice(root.iterdir(), _LOOKED_AT) if x.exists() and x.name[0] != "."]
    return [path.name for path in [x for x in there if x.is_dir()] or there]


def _first_missing(names: Mapping[Path, Sequence[str]]) -> Path | None:
    """Runs on a node: the first folder that is not there, or the first file that it lacks."""
    paths = (path for root, inner in names.items() for path in (root, *map(root.joinpath, inner)))
    return next((path for path in paths if not path.exists()), None)


def require_lasting_place() -> None:
    """Refuse to start on a machine that is being taken away: nothing more is placed there.

    Raises:
        UserError: it is this one.
    """
    here = ray.get_runtime_context().get_node_id()
    if here not in {node["NodeID"] for node in usable()}:
        raise UserError(
            "this machine is being taken away (Ray drains it), and a run needs the one that it "
            "was started on: run the command on another node of the cluster"
        )


def versions() -> dict[str, str]:
    """Of Python and of the packages that must agree between nodes."""
    result = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = "missing"
    return result


def disagreements(nodes: list[Node]) -> list[str]:
    """Lines "package: 1.0 on A, 2.0 on B" for every version that differs from the driver's."""
    lines = []
    for name, here in versions().items():
        others = [f"{node.versions[name]} on {node.address}" for node in nodes]
        if any(node.versions[name] != here for node in nodes):
            lines.append(f"{name}: {here} here, " + ", ".join(others))
    return lines


def _describe(probe: Path, address: str) -> tuple[Node, str]:
    """Runs on a node; also returns the name of what it wrote, for the driver to look."""
    token, reads = uuid.uuid4().hex, False
    try:
        reads = (probe / "driver").read_text() == probe.name
        replace_file(probe / token, "")
    except OSError:
        token = ""
    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    node = Node(
        address=address,
        reads=reads,
        writes=False,
        versions=versions(),
        gpus=gpus,
        shared_memory_bytes=machine.shared_memory_bytes(),
        memory_bytes=machine.memory_bytes(),
        free_bytes=shutil.disk_usage(probe).free if reads else 0,
    )
    return node, token


# a process that dies as it starts says little of its node: it is asked again
_look_around = ray.remote(num_cpus=0, max_retries=2)(_describe)
_look_for = ray.remote(num_cpus=0, max_retries=2)(_first_missing)
