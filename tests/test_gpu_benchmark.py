"""The benchmark of GPUs runs on a CPU too, with no more than the wheels that it is brought."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_wheels.sh"
OWN = {"benchmarks", "pipelines", "reid_core", "tune_configs"}

# What is on the path and not among the names is not there.
ONLY_ALLOWED = """
import sys
from importlib.machinery import PathFinder

class Allowed(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if path is None and fullname not in NAMES and not fullname.startswith("_sysconfigdata"):
            return None
        return super().find_spec(fullname, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Allowed
"""

# Two steps stand for all: one hangs, with a process that it began, the other has something to say.
TWO_STEPS = """
import importlib, os, subprocess, sys, time, types

if "--step" in sys.orig_argv and "hangs" in sys.orig_argv:
    child = subprocess.Popen(["sleep", "600"])
    with open(PIDS, "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    time.sleep(600)
settings = importlib.import_module("benchmarks.gpu.settings")
settings.WEIGHTS.clear()
settings.WEIGHTS.update(hangs=1, works=119)
works = types.ModuleType("benchmarks.gpu.works")
works.cases = lambda settings: [("one", lambda: [{"what": "counted", "s": 1.5}])]
sys.modules[works.__name__] = works
"""

# step: lines of each case, by what they are of
STAGES = {
    "cclnet": ("prepare", "align"),
    "csdn": ("imaging",),
    "cpcl": ("train",),
    "bmil": ("intra", "joint"),
}
EXPECTED = {
    "agreement": {
        "neighbors and labels": [""],
        "memory": ["update and swap"],
        "cclnet": ["prepare", "prompts", "align", "row start", "row prepare", "row align"],
        "csdn": ["prompts", "fusion", "images", "row start", "row images"],
        "cpcl": ["train", "row start", "row train"],
        "bmil": ["intra", "joint", "row start", "row intra", "row joint"],
    },
    "search": {
        "2000 x 64": [
            "neighbors, exact",
            "Jaccard and DBSCAN",
            *(f"rival matmul + topk, {mode}" for mode in ("fp32", "tf32", "bf16")),
            "rival faiss-cpu",
        ]
    },
    "embed": {
        "crossreid-small": ["fp32", "tf32", "bf16"],
        "crossreid-small, bf16 compiled": ["bf16 compiled"],
        "crossreid-small, tf32 compiled": ["tf32 compiled"],
    },
    "steps": {
        method: [f"{stage} {mode}" for stage in stages for mode in ("bf16", "tf32", "fp32")]
        for method, stages in STAGES.items()
    }
    | {
        f"{method}, graphs": [f"{stage} bf16 graphs" for stage in stages]
        for method, stages in STAGES.items()
    }
    | {"cclnet, compiled": [f"{stage} bf16 compiled" for stage in STAGES["cclnet"]]},
    "epoch": {
        "CCLNet, bf16": [
            "prepare 0",
            "prepare 1",
            "prompts 0",
            "align 0",
            "align 1",
            "whole run, extrapolated",
        ]
    },
    "ddp": {"cclnet prepare": ["none", "DDP", "DDP, bf16 buckets"]},
}


def run(folder: Path, site: str, *arguments: str) -> list[dict[str, Any]]:
    """The benchmark's lines, of a process that begins with some code; temporary files in folder."""
    (folder / "sitecustomize.py").write_text(site)
    (folder / "tmp").mkdir()
    (folder / "out").mkdir()
    path = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", str(folder / "out"), *arguments],
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder / "tmp")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(x) for x in (folder / "out" / "results.jsonl").read_text().splitlines()]


def of_what(line: dict[str, Any]) -> str:
    row = [f"row {line['row']}"] if "row" in line else []
    keys = ("what", "stage", "epoch", "mode")
    return " ".join([*(str(line[key]) for key in keys if key in line), *row])


@pytest.mark.slow
def test_every_step_runs_on_a_cpu_with_what_a_machine_has_and_is_brought(tmp_path: Path) -> None:
    site = f"NAMES = {sorted(modules_of(listed('names') | closure(listed('has'))))}{ONLY_ALLOWED}"
    machine, *lines = run(tmp_path, site, "--minutes", "30")
    assert machine["step"] == "machine"
    assert [line for line in lines if "error" in line or "not measured" in line] == []
    whole = [line for line in lines if line["case"] == "whole step"]
    assert [line["step"] for line in whole] == list(EXPECTED)
    assert {line["exit"] for line in whole} == {0}
    lines = [line for line in lines if line["case"] != "whole step"]
    shown = Counter((line["step"], line["case"], of_what(line)) for line in lines)
    assert shown == Counter(
        (step, case, what)
        for step, cases in EXPECTED.items()
        for case, every in cases.items()
        for what in every
    )
    assert {line["agrees"] for line in lines if line["step"] == "agreement"} == {True}
    for line in (line for line in lines if line["step"] == "steps"):
        assert isinstance(line["waits"], int), line
        assert line["operations"] > 1000, line
    recalls = {line["what"]: line.get("recall") for line in lines if line["step"] == "search"}
    assert recalls["neighbors, exact"] == 1
    assert recalls["rival faiss-cpu"] is None, "it is not among the wheels"


@pytest.mark.slow
def test_a_step_that_hangs_is_cut_off_and_the_next_one_runs(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    lines = run(tmp_path, f"PIDS = {str(pids)!r}{TWO_STEPS}", "--minutes", "10")
    assert [(line["step"], line.get("case")) for line in lines] == [
        ("machine", None),
        ("hangs", "whole step"),
        ("works", "one"),
        ("works", "whole step"),
    ]
    _, hangs, counted, works = lines
    assert (hangs["slice"], hangs["exit"]) == (5, "cut off at the end of its slice")
    assert (counted["what"], works["exit"]) == ("counted", 0)
    assert works["slice"] > hangs["slice"]
    assert len(pids.read_text().split()) == 2
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())
    table = (tmp_path / "out" / "table.md").read_text()
    assert "failed: whole step (cut off at the end of its slice)" in table.partition("## works")[0]
    assert "| one | counted | 1.5 |" in table.partition("## works")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "case"),
    [("embed", "crossreid-small, bf16 compiled"), ("steps", "cclnet, graphs")],
)
def test_what_the_rest_of_a_slice_has_no_time_for_says_so(
    tmp_path: Path, step: str, case: str
) -> None:
    (line,) = run(tmp_path, "", "--step", step, "--cases", case, "--seconds", "20")
    assert (line["step"], line["case"]) == (step, case)
    assert re.fullmatch(r"needs about \d+ s, -?\d+ of 20 s are left", line["not measured"])


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie, which nobody may have waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# The wheels -------------------------------------------------------------------------------------


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(variable: str) -> set[str]:
    """A list of distributions in the script."""
    hit = re.search(rf'^{variable}="([^"$]*)"', SCRIPT.read_text(), re.MULTILINE)
    assert hit is not None
    return {plain(name) for name in hit[1].split()}


def needs(name: str) -> set[str]:
    """What an installed distribution requires of others."""
    every = map(Requirement, requires(name) or [])
    return {
        plain(one.name) for one in every if not one.marker or one.marker.evaluate({"extra": ""})
    }


def closure(names: set[str]) -> set[str]:
    """Distributions and all that they require."""
    done: set[str] = set()
    while left := names - done:
        done |= left
        names = names.union(*map(needs, left))
    return done


def modules_of(names: set[str]) -> set[str]:
    """Top-level modules of distributions, of the project and of Python."""
    brought = {
        module
        for module, owners in packages_distributions().items()
        if any(plain(owner) in names for owner in owners)
    }
    return brought | OWN | set(sys.stdlib_module_names)


def test_wheels_require_nothing_that_is_in_neither_list() -> None:
    there = listed("names") | closure(listed("has"))
    assert {name: needs(name) - there for name in listed("names") if needs(name) - there} == {}


def test_wheels_are_pinned() -> None:
    pins = (line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert listed("names") <= set(map(plain, pins))


@pytest.mark.parametrize(("mib", "code"), [(60, 0), (61, 1)])
def test_a_folder_of_more_than_60_mib_is_refused(tmp_path: Path, mib: int, code: int) -> None:
    folder, commands = tmp_path / "wheels", tmp_path / "bin"
    folder.mkdir()
    commands.mkdir()
    (commands / "python3").write_text("#!/bin/sh\n")  # whose pip has nothing to download
    (commands / "python3").chmod(0o755)
    with (folder / "one.whl").open("wb") as file:
        file.truncate(mib * 2**20)
    done = subprocess.run(
        ["sh", str(SCRIPT), str(folder)],
        env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "FAISS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("more than 60 MiB" in done.stderr) == bool(code)
