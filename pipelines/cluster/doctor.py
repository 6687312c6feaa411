"""`crossreid doctor`: will a run work here? First this machine, then the cluster of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pipelines.cluster import checks, preflight
from pipelines.cluster import machine as limits
from pipelines.cluster.checks import Finding
from pipelines.cluster.nodes import total
from pipelines.cluster.session import session
from pipelines.config import run as configuration
from pipelines.errors import UserError
from pipelines.storage.files import reason


def examine(folder: Path, address: str | None) -> Iterator[Finding]:
    """All checks, each as soon as it is done.

    Args:
        folder: where runs are to be written; made if it does not exist.
        address: cluster to join, None or "local" to start one here, as for `ray.address`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield Finding("run folder", "fail", f"{folder}: {reason(error)}", "choose another --out")
        return
    joins = address not in (None, "local")
    of_machine: list[Callable[[], Finding]] = [
        checks.python,
        checks.packages,
        checks.accelerator,
        checks.neighbor_search,
        checks.sweeps,
        checks.weights,
        lambda: checks.machine(limits.cores(), limits.memory_bytes()),
        lambda: checks.shared_memory(limits.shared_memory_bytes(), limits.memory_bytes()),
        checks.authentication,
        checks.open_files,
        lambda: checks.disk(folder),
        checks.step,
        *([] if joins else [checks.ports]),
    ]
    for check in of_machine:
        yield check()
    yield from cluster(folder, address)


def cluster(folder: Path, address: str | None) -> Iterator[Finding]:
    """Start or join Ray as a run would, then ask every node."""
    began = time.perf_counter()
    try:
        config = configuration.validate(
            {"data": {"root": str(folder)}, "ray": {"address": address}}, source="doctor"
        )
        with session(config):
            seconds = time.perf_counter() - began
            yield resources({kind: total(kind) for kind in ("CPU", "GPU")}, seconds)
            yield from nodes(folder, *preflight.survey(folder))
    except UserError as error:
        yield Finding("Ray", "fail", str(error))


def resources(available: dict[str, float], seconds: float) -> Finding:
    """What the cluster offers."""
    cpus, gpus = available.get("CPU", 0), available.get("GPU", 0)
    result = f"answers after {seconds:.1f} s: {cpus:g} CPUs, {gpus:g} GPUs"
    if cpus >= 2:
        return Finding("Ray", "ok", result)
    remedy = "a worker and the tasks that decode images need a core each"
    return Finding("Ray", "fail", result, remedy)


def nodes(folder: Path, answered: list[preflight.Node], silent: list[str]) -> Iterator[Finding]:
    """Whether the nodes agree with this one, see the folder, and have what a run needs."""
    if silent:
        remedy = "see the node's logs in /tmp/ray/session_latest/logs; is the package installed?"
        yield Finding("nodes", "fail", f"no answer from {', '.join(silent)}", remedy)
    blind = [node.address for node in answered if not (node.reads and node.writes)]
    path = folder.resolve()
    if blind:
        yield Finding(
            "shared folder",
            "fail",
            f"{path} is another folder on {', '.join(blind)}",
            "mount a shared file system under the same path on all nodes",
        )
    else:
        yield Finding("shared folder", "ok", f"{path} is the same on {len(answered)} node(s)")
    wrong = preflight.disagreements(answered)
    if wrong:
        remedy = "install the same constraints.txt on every node"
        yield Finding("versions", "fail", "; ".join(wrong), remedy)
    else:
        yield Finding("versions", "ok", f"the same on {len(answered)} node(s)")
    if len(answered) > 1:  # else it is this machine, and has been looked at
        yield from _each(
            (node, checks.shared_memory(node.shared_memory_bytes, node.memory_bytes))
            for node in answered
        )
        yield from _each(
            (node, checks.free_space(node.free_bytes, folder)) for node in answered if node.reads
        )
    yield from _each((node, gpus(node)) for node in answered if node.gpus_of_ray)


def gpus(node: preflight.Node) -> Finding:
    """Whether torch can use the GPUs that Ray gives away on a node."""
    if len(node.gpus) >= node.gpus_of_ray:
        return Finding("GPUs", "ok", ", ".join(sorted(set(node.gpus))))
    return Finding(
        "GPUs",
        "fail",
        f"Ray gives away {node.gpus_of_ray}, torch sees {len(node.gpus)}",
        "run `crossreid doctor` on that node; the driver, the torch build and "
        "CUDA_VISIBLE_DEVICES must be as on the others",
    )


def _each(findings: Iterable[tuple[preflight.Node, Finding]]) -> Iterator[Finding]:
    """A line for every node where something is off, with its address; one where nothing is."""
    known = list(findings)
    wrong = [(node, finding) for node, finding in known if finding.verdict != "ok"]
    for node, finding in wrong:
        yield replace(finding, found=f"{node.address}: {finding.found}")
    if known and not wrong:
        node, finding = known[0]
        others = f"; well on all {len(known)} nodes" if len(known) > 1 else ""
        yield replace(finding, found=f"{node.address}: {finding.found}{others}")
