"""Cluster files: valid for Ray, consistent with the package and with each other."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import subprocess
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.cli import app
from pipelines.cluster import machine

ROOT = Path(__file__).resolve().parents[3]
LAUNCHERS = [ROOT / "cluster.yaml", ROOT / "deploy" / "onprem.yaml"]

# Fields of KubeRay's ray.io/v1 types as documented; an unknown one would be dropped silently.
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec",
    "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend",
    "workerGroupSpecs",
}  # fmt: skip
HEAD = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKERS = {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts",
    "rayStartParams", "replicas", "scaleStrategy", "suspend", "template",
}  # fmt: skip


USED_ON_NODES = {"cpu", "serve", "sweep"}  # by the commands that the pages give
with (ROOT / "pyproject.toml").open("rb") as file:
    EXTRAS = tomllib.load(file)["project"]["optional-dependencies"]


def extras_of(line: str) -> set[str]:
    """Of the package, as a line of a shell installs it."""
    (inner,) = re.findall(r"crossreid\[([^\]]*)\]", line)
    return set(inner.split(","))


def excluded(path: Path, rules: list[str]) -> bool:
    """As rsync reads rules without a slash inside: a leading one means the top, none any folder."""
    return any(
        fnmatchcase(path.parts[0], rule[1:])
        if rule.startswith("/")
        else any(fnmatchcase(part, rule) for part in path.parts)
        for rule in rules
    )


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
class TestLauncherFiles:
    def test_ray_accepts_it(self, path: Path) -> None:
        """The validator returns nothing and raises at the first slip."""
        assert validate_config(prepare_config(read(path))) is None

    def test_ray_would_refuse_a_slip(self, path: Path) -> None:
        """The validator does look: a misspelt key fails."""
        with pytest.raises(Exception, match="setup_comands"):
            validate_config(prepare_config(read(path) | {"setup_comands": []}))

    def test_every_node_installs_the_package_with_the_tested_versions(self, path: Path) -> None:
        content = read(path)
        folder = Path(next(iter(content["file_mounts"]))).name
        installs = [line for line in content["setup_commands"] if "pip install" in line]
        assert len(installs) == 1
        assert f'-c {folder}/constraints.txt -e "./{folder}[' in installs[0]
        assert USED_ON_NODES <= extras_of(installs[0]) <= EXTRAS.keys() - {"gpu"}  # never run

    def test_every_node_has_the_token_and_asks_for_it(self, path: Path) -> None:
        content = read(path)
        (target,) = (to for to, source in content["file_mounts"].items() if source != ".")
        assert target.endswith("/.ray/auth_token")
        starts = content["head_start_ray_commands"] + content["worker_start_ray_commands"]
        started = [line for line in starts if "ray start" in line]
        assert len(started) == 2
        assert all("RAY_AUTH_MODE=token ray start" in line for line in started)
        assert any("RAY_AUTH_MODE=token" in line for line in content["setup_commands"])

    def test_all_of_the_source_is_copied_and_nothing_else(self, path: Path) -> None:
        rules = read(path)["rsync_exclude"]
        packages = [ROOT / name for name in ("pipelines", "reid_core", "tune_configs")]
        source = [file for package in packages for file in package.rglob("*.py")]
        left = [file for file in source if excluded(file.relative_to(ROOT), rules)]
        assert source
        assert left == []
        for name in (".venv/bin/python", "runs/sysu/summary.json", ".git/HEAD", ".mypy_cache/a"):
            assert excluded(Path(name), rules)

    @pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
    def test_rsync_reads_the_rules_so(self, path: Path, tmp_path: Path) -> None:
        rules = read(path)["rsync_exclude"]
        names = ["pipelines/runs/a", "runs/b", ".venv/c", ".git/d", "x/.ruff_cache/e", "f.py"]
        for name in names:
            (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "here" / name).touch()
        options = [word for rule in rules for word in ("--exclude", rule)]
        there = tmp_path / "there"
        subprocess.run(["rsync", "-a", *options, f"{tmp_path}/here/", f"{there}/"], check=True)
        copied = {str(one.relative_to(there)) for one in there.rglob("*") if one.is_file()}
        assert copied == {name for name in names if not excluded(Path(name), rules)}
        assert copied == {"pipelines/runs/a", "f.py"}

    def test_the_environment_is_the_one_that_ray_starts_from(self, path: Path) -> None:
        """`ray submit` calls `python`: the venv must come first on the path."""
        assert any("venv/bin:$PATH" in line for line in read(path)["setup_commands"])


class TestCloud:
    def test_workers_are_spot_with_the_gpus_of_the_large_recipe_and_the_head_is_not(self) -> None:
        types = read(ROOT / "cluster.yaml")["available_node_types"]
        spot = {name: "InstanceMarketOptions" in t["node_config"] for name, t in types.items()}
        assert spot == {"head": False, "gpu_worker": True}
        recipe = read(ROOT / "tune_configs" / "cclnet_sysu_8gpu.yaml")
        assert types["gpu_worker"]["resources"]["GPU"] == recipe["trainer"]["num_workers"]
        assert types["gpu_worker"]["min_workers"] == 0
        assert types["gpu_worker"]["max_workers"] == read(ROOT / "cluster.yaml")["max_workers"]

    def test_shared_path_is_mounted_on_every_node_and_may_be_written(self) -> None:
        content = read(ROOT / "cluster.yaml")
        setup, user = content["setup_commands"], content["auth"]["ssh_user"]
        mount = next(i for i, line in enumerate(setup) if "mount -t nfs4" in line)
        assert "/shared" in setup[mount]
        assert setup[mount + 1] == f"test -w /shared || sudo chown {user}:{user} /shared"

    def test_what_ray_starts_machines_with_is_installed_and_pinned(self) -> None:
        content = read(ROOT / "cluster.yaml")
        (install,) = (line for line in content["setup_commands"] if "pip install" in line)
        assert "aws" in extras_of(install)
        assert any(need.startswith("boto3") for need in EXTRAS["aws"])
        assert re.search(r"^boto3==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_head_of_ones_own_machines_has_a_key_for_the_others() -> None:
    """Ray copies one to it where the file names one, and only then."""
    assert read(ROOT / "deploy" / "onprem.yaml")["auth"]["ssh_private_key"]


class TestKubernetes:
    JOB, POLICY = yaml.safe_load_all((ROOT / "deploy" / "rayjob.yaml").read_text())

    def test_every_field_is_one_of_kuberay(self) -> None:
        spec = self.JOB["spec"]
        cluster = spec["rayClusterSpec"]
        assert (self.JOB["apiVersion"], self.JOB["kind"]) == ("ray.io/v1", "RayJob")
        assert spec.keys() <= RAY_JOB
        assert cluster.keys() <= RAY_CLUSTER
        assert cluster["headGroupSpec"].keys() <= HEAD
        for group in cluster["workerGroupSpecs"]:
            assert group.keys() <= WORKERS

    def test_ray_version_is_the_tested_one(self) -> None:
        version = importlib.metadata.version("ray")
        assert self.JOB["spec"]["rayClusterSpec"]["rayVersion"] == version
        assert f"rayproject/ray:{version}-" in (ROOT / "deploy" / "Dockerfile").read_text()

    def test_the_image_has_what_the_commands_need(self) -> None:
        extras = extras_of((ROOT / "deploy" / "Dockerfile").read_text())
        assert USED_ON_NODES <= extras <= EXTRAS.keys() - {"gpu"}

    def test_nothing_but_source_gets_into_the_image(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        assert {".git", ".venv", "runs", "build", "dist"} <= set(ignored)

    def test_every_pod_sees_the_shared_volume_and_has_shared_memory(self) -> None:
        cluster = self.JOB["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            paths = {
                mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]
            }
            assert {"/shared", "/dev/shm"} == paths.keys()
            assert set(paths.values()) == {volume["name"] for volume in pod["volumes"]}

    def test_shared_memory_holds_what_ray_takes(self) -> None:
        cluster = self.JOB["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            memory = 2**30 * int(pod["containers"][0]["resources"]["limits"]["memory"][:-2])
            (shm,) = (v["emptyDir"] for v in pod["volumes"] if v["name"] == "shm")
            assert 2**30 * int(shm["sizeLimit"][:-2]) >= machine.wanted_store_bytes(memory)

    def test_nobody_from_outside_reaches_a_port(self) -> None:
        cluster = self.JOB["spec"]["rayClusterSpec"]
        assert cluster["authOptions"] == {"mode": "token"}
        label = self.POLICY["spec"]["podSelector"]["matchLabels"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["template"]["metadata"]["labels"] == label
            assert group["template"]["spec"]["securityContext"]["fsGroup"] == 1000
        assert self.POLICY["spec"]["ingress"], "none would cut the nodes off from each other"

    def test_gpus_asked_for_cover_the_workers(self) -> None:
        words = shlex.split(self.JOB["spec"]["entrypoint"])
        workers = next(int(w.split("=")[1]) for w in words if w.startswith("trainer.num_workers="))
        (group,) = self.JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert workers <= group["maxReplicas"]
        assert "trainer.use_gpu=true" in words


def commands_of(path: Path) -> list[str]:
    """Lines of a file that call this package's command line, without comment marks."""
    text = re.sub(r"\\\n[#\s]*", "", path.read_text())
    result = re.findall(r"(?:crossreid|pipelines/cli\.py --) ([a-z]+ .*)", text)
    return [line.split("  ")[0].rstrip("`") for line in result]


@pytest.mark.parametrize("path", [*LAUNCHERS, ROOT / "docs" / "cluster.md"], ids=lambda p: p.name)
def test_documented_commands_exist(path: Path) -> None:
    """Every option and command that the files name is one of the command line's."""
    result = commands_of(path)
    assert result
    for line in result:
        command: Any = typer.main.get_command(app)
        for word in shlex.split(line, comments=True):
            if hasattr(command, "commands"):
                assert word in command.commands, line
                command = command.commands[word]
            elif word.startswith("--"):
                assert word in {name for option in command.params for name in option.opts}, line
