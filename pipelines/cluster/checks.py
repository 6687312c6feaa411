"""What `crossreid doctor` looks at on this machine: one line per check, with the remedy.

A failed check means that a run will stop; a warning, that it will be slow or that something
optional is missing. `pipelines.cluster.doctor` says in which order, and looks at the cluster.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import open_clip
import torch
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from pipelines.cluster import machine as limits
from pipelines.cluster import preflight
from reid_core.knn.faiss_screen import faiss_for_gpus
from reid_core.models import backbones

_GIB = 2**30
_MIN_MEMORY = 4 * _GIB  # what the demo asks for
_MIN_DISK = 20 * _GIB  # three checkpoints of RN50 with their moments are 2 GB, a sweep has many
_MIN_FILES = 4096  # Ray keeps sockets open per worker
_HEAD_PORTS = {6379: "the cluster's own", 8265: "dashboard and jobs", 10001: "remote drivers"}
_STEP_IMAGES, _STEPS, _SLOW_STEP_S = 64, 3, 2.0
_FAISS = "faiss-cpu", "faiss-gpu"
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        check: what was looked at.
        verdict: "ok", "warn" or "fail".
        found: what is there.
        remedy: what to do, empty where all is well.
    """

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def failed(findings: Sequence[Finding]) -> bool:
    """Whether a run would stop."""
    return any(finding.verdict == "fail" for finding in findings)


def table(findings: Sequence[Finding]) -> Table:
    """For the terminal."""
    shown = Table(show_header=False, box=None, pad_edge=False)
    for finding in findings:
        remedy = f"\n[dim]-> {escape(finding.remedy)}[/]" if finding.remedy else ""
        style = _STYLES[finding.verdict]
        shown.add_row(
            f"[{style}]{finding.verdict}[/]", escape(finding.check), escape(finding.found) + remedy
        )
    return shown


def to_json(findings: Sequence[Finding]) -> str:
    """For programs: {"ok": bool, "findings": [...]}."""
    lines = [asdict(finding) for finding in findings]
    return json.dumps({"ok": not failed(findings), "findings": lines}, indent=1) + "\n"


def python() -> Finding:
    """The interpreter."""
    result = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Finding("Python", "ok", result)
    return Finding("Python", "fail", result, "install Python 3.11 or 3.12 and make a new .venv")


def packages() -> Finding:
    """Every requirement of the package, in the version that it asks for."""
    wrong, count = [], 0
    for text in importlib.metadata.requires("crossreid") or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        remedy = 'pip install -c constraints.txt -e ".[cpu]" (or ".[gpu]")'
        return Finding("packages", "fail", "; ".join(wrong), remedy)
    known = preflight.versions()
    return Finding("packages", "ok", f"{count}; torch {known['torch']}, Ray {known['ray']}")


def accelerator() -> Finding:
    """Whether torch can use the GPUs that the machine has."""
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        result = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
        return Finding("GPU", "ok", f"{result}, CUDA {torch.version.cuda}, NCCL {nccl}")
    if Path("/proc/driver/nvidia/version").exists():
        return Finding(
            "GPU",
            "fail",
            f"there is one, torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it",
            "compare the CUDA version of nvidia-smi with torch's: update the driver, or install "
            "the torch build for it; check CUDA_VISIBLE_DEVICES",
        )
    return Finding("GPU", "warn", "none: runs use CPUs", "fine for the demo; days for real data")


def neighbor_search() -> Finding:
    """What finds neighbors on the CPU and on GPUs."""
    version = next((text for name in _FAISS if (text := _installed(name))), None)
    if not torch.cuda.is_available():
        on_gpus = ""
    else:
        works, reason = faiss_for_gpus()
        on_gpus = "; faiss on GPUs" if works else f"; torch on GPUs ({reason})"
    if version is None:
        remedy = 'pip install -c constraints.txt -e ".[cpu]"'
        result = f"none: torch searches, trainer.search=approximate is refused{on_gpus}"
        return Finding("faiss", "warn", result, remedy)
    return Finding("faiss", "ok", f"{version} on the CPU{on_gpus}")


def _installed(name: str) -> str | None:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def sweeps() -> Finding:
    """Whether `crossreid tune` can use Optuna."""
    if importlib.util.find_spec("optuna"):
        return Finding("optuna", "ok", importlib.metadata.version("optuna"))
    remedy = 'pip install -e ".[sweep]", for searches with method: optuna'
    return Finding("optuna", "warn", "none: sweeps by grid, axes or random", remedy)


def weights() -> Finding:
    """Whether the weights of the published recipes lie in open_clip's cache."""
    source = open_clip.get_pretrained_cfg("RN50", "openai")
    for path in _cached(source):
        return Finding("CLIP RN50", "ok", str(path))
    remedy = (
        "the first run downloads the weights; without a network, set model.pretrained=/path/RN50.pt"
    )
    return Finding("CLIP RN50", "warn", "not in the cache", remedy)


def machine(cores: int, memory: int) -> Finding:
    """What this process may use; memory in bytes."""
    result = f"{cores} cores, {memory / _GIB:.1f} GiB of memory"
    if cores < 2:
        return Finding(
            "machine", "warn", result, "a worker and the tasks that decode share it: slow"
        )
    if memory < _MIN_MEMORY:
        remedy = "fewer trainer.num_workers; raise the container's limit"
        return Finding("machine", "warn", f"{result}: processes may be killed", remedy)
    return Finding("machine", "ok", result)


def shared_memory(size: int, memory: int) -> Finding:
    """Ray's object store lives in /dev/shm; both sizes in bytes."""
    wanted = limits.wanted_store_bytes(memory)
    result = f"{size / _GIB:.1f} GiB, Ray's object store takes {wanted / _GIB:.1f}"
    if size >= wanted:
        return Finding("/dev/shm", "ok", result)
    ample = math.ceil(wanted / _GIB) + 1
    remedy = (
        f"give the container more: docker run --shm-size={ample}g, in Kubernetes an emptyDir of "
        f"{ample}Gi; or ray start --object-store-memory={int(0.9 * size)}"
    )
    return Finding("/dev/shm", "warn", f"{result}: a cluster's node goes through the disk", remedy)


def authentication() -> Finding:
    """Whether whoever reaches Ray's ports must present a token."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    token = Path.home() / ".ray" / "auth_token"
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or token.is_file()
    if mode == "token" and has_token:
        return Finding("Ray token", "ok", "RAY_AUTH_MODE=token, and a token is here")
    if mode == "token":
        remedy = "ray get-auth-token --generate on the head; copy ~/.ray/auth_token to every node"
        return Finding("Ray token", "fail", f"RAY_AUTH_MODE=token, but no {token}", remedy)
    remedy = (
        "for a cluster of several machines set RAY_AUTH_MODE=token on all of them (docs/cluster.md)"
    )
    return Finding("Ray token", "warn", f"RAY_AUTH_MODE={mode or 'unset'}: none asked for", remedy)


def open_files() -> Finding:
    """The limit of open files."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit >= _MIN_FILES or limit == resource.RLIM_INFINITY:
        return Finding("open files", "ok", str(limit))
    return Finding("open files", "warn", str(limit), f"ulimit -n {min(65536, most)}")


def disk(folder: Path) -> Finding:
    """Free space where runs are written."""
    return free_space(shutil.disk_usage(folder).free, folder)


def free_space(free: int, folder: Path) -> Finding:
    """Whether a run and what is made of it find room; `free` in bytes."""
    result = f"{free / _GIB:.0f} GiB free in {folder.resolve()}"
    if free >= _MIN_DISK:
        return Finding("disk", "ok", result)
    return Finding("disk", "warn", result, "free space, or write runs elsewhere with --out")


def ports() -> Finding:
    """The ports of `ray start --head`."""
    taken = [f"{port} ({use})" for port, use in _HEAD_PORTS.items() if _listens(port)]
    if not taken:
        return Finding("ports", "ok", f"{', '.join(map(str, _HEAD_PORTS))} are free")
    remedy = (
        "if that is a cluster of yours, join it with ray.address=auto; else choose others with "
        "ray start --port and --dashboard-port"
    )
    return Finding("ports", "warn", f"in use: {', '.join(taken)}", remedy)


def step() -> Finding:
    """Forward and backward of the small CLIP, on the device that a run would use."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tower = backbones.load(backbones.SMALL).visual.to(device).train()
    size = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size,) * 2
    images = torch.zeros(_STEP_IMAGES, 3, *size, device=device)
    seconds = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        tower(images).square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    result = f"{1000 * min(seconds):.0f} ms for {_STEP_IMAGES} images on {device.type}"
    if min(seconds) < _SLOW_STEP_S:
        return Finding("one step", "ok", result)
    return Finding("one step", "warn", result, "other programs may hold the cores: see `top`")


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(0.5)
        return client.connect_ex(("127.0.0.1", port)) == 0


def _cached(source: Mapping[str, str]) -> Iterator[Path]:
    from huggingface_hub import try_to_load_from_cache

    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        path = try_to_load_from_cache(source["hf_hub"].rstrip("/"), name)
        if isinstance(path, str):
            yield Path(path)
    archive = Path.home() / ".cache" / "clip" / Path(source["url"]).name
    if archive.is_file():
        yield archive
