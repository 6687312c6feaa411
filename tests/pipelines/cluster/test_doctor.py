"""The diagnosis: every verdict from a case made by hand, and the survey on Ray."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray._private.state import state

from pipelines.cluster import checks, doctor, preflight
from pipelines.cluster import machine as limits
from pipelines.cluster.checks import Finding
from pipelines.cluster.nodes import usable
from pipelines.cluster.preflight import Node
from pipelines.config import run as configuration
from pipelines.data import convert, packed
from pipelines.errors import UserError
from pipelines.retrieval import embed

GIB = 2**30


def node(address: str, **changes: Any) -> Node:
    """A node that agrees with this machine in everything but `changes`."""
    healthy = Node(address, True, True, preflight.versions(), (), 8 * GIB, 24 * GIB, 100 * GIB)
    return dataclasses.replace(healthy, **changes)


def verdicts(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in findings}


class TestMachine:
    def test_this_environment_passes(self) -> None:
        assert checks.python().verdict == "ok"
        assert checks.packages().verdict == "ok"

    @pytest.mark.parametrize(
        ("installed", "message"),
        [("1.0", "ray 1.0 is not"), (None, "ray is missing")],
        ids=["too old", "missing"],
    )
    def test_wrong_package_is_named(
        self, monkeypatch: pytest.MonkeyPatch, installed: str | None, message: str
    ) -> None:
        real = importlib.metadata.version

        def version(name: str) -> str:
            if name != "ray":
                return real(name)
            if installed is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return installed

        monkeypatch.setattr(importlib.metadata, "version", version)
        result = checks.packages()
        assert result.verdict == "fail"
        assert message in result.found
        assert "constraints.txt" in result.remedy

    def test_one_core_is_slow_and_little_memory_kills(self) -> None:
        assert checks.machine(2, 24 * GIB) == Finding(
            "machine", "ok", "2 cores, 24.0 GiB of memory"
        )
        assert "slow" in checks.machine(1, 24 * GIB).remedy
        assert "trainer.num_workers" in checks.machine(16, 2 * GIB).remedy
        assert 0 < limits.memory_bytes() <= psutil.virtual_memory().total

    def test_docker_default_of_shared_memory_is_too_little(self) -> None:
        small = checks.shared_memory(64 * 2**20, 8 * GIB)
        assert small.verdict == "warn"
        assert "--shm-size" in small.remedy
        assert checks.shared_memory(8 * GIB, 24 * GIB).verdict == "ok"

    def test_full_disk(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": GIB}))
        assert checks.disk(tmp_path).verdict == "warn"

    def test_port_of_another_program(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            monkeypatch.setattr(checks, "_HEAD_PORTS", {port: "dashboard"})
            assert checks.ports().verdict == "warn"
            assert f"{port} (dashboard)" in checks.ports().found
        assert checks.ports().verdict == "ok"

    def test_gpu_that_torch_cannot_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A driver without a usable build is the mistake that costs days; no GPU is a choice."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(Path, "exists", lambda path: True)
        assert checks.accelerator().verdict == "fail"
        monkeypatch.setattr(Path, "exists", lambda path: False)
        assert checks.accelerator().verdict == "warn"

    @pytest.mark.parametrize(
        ("installed", "works", "searches"),
        [
            ("faiss-cpu", (None, "for CPUs"), "torch on GPUs (for CPUs)"),
            ("faiss-gpu", (checks, ""), "faiss on GPUs"),
            ("faiss-gpu", (None, "no kernel"), "torch on GPUs (no kernel)"),
        ],
    )
    def test_either_faiss_will_do_also_beside_a_gpu(
        self, monkeypatch: pytest.MonkeyPatch, installed: str, works: object, searches: str
    ) -> None:
        def version(name: str) -> str:
            if name != installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return "1.14"

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(checks, "faiss_for_gpus", lambda: works)
        expected = f"{installed} 1.14 on the CPU; {searches}"
        assert checks.neighbor_search() == Finding("faiss", "ok", expected)

    def test_without_faiss_the_remedy_is_a_line_to_copy(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def version(name: str) -> str:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        result = checks.neighbor_search()
        assert result.verdict == "warn"
        assert 'pip install -c constraints.txt -e ".[cpu]"' in result.remedy

    def test_unwritable_folder_ends_the_examination(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (result,) = doctor.examine(tmp_path / "file", None)
        assert (result.check, result.verdict) == ("run folder", "fail")


@pytest.mark.slow
class TestCluster:
    def test_healthy(self, tmp_path: Path) -> None:
        result = verdicts(doctor.nodes(tmp_path, [node("a"), node("b")], []))
        assert result == dict.fromkeys(("shared folder", "versions", "/dev/shm", "disk"), "ok")

    @pytest.mark.parametrize("driver", ["10.0.0.1", "10.0.0.3"])
    @pytest.mark.parametrize(
        ("check", "wrong", "says", "verdict"),
        [
            ("/dev/shm", {"shared_memory_bytes": 64 * 2**20}, "0.1 GiB, Ray's", "warn"),
            ("disk", {"free_bytes": 2 * GIB}, "2 GiB free in", "warn"),
            ("GPUs", {"gpus": ("A",), "gpus_of_ray": 2}, "Ray gives away 2, torch sees 1", "fail"),
        ],
    )
    def test_every_node_is_looked_at_and_named(
        self,
        tmp_path: Path,
        driver: str,
        check: str,
        wrong: dict[str, Any],
        says: str,
        verdict: str,
    ) -> None:
        """The nodes come in the order of their addresses; the driver's may be any of them."""
        good = {"gpus": ("A", "A"), "gpus_of_ray": 2}
        addresses = [driver, "10.0.0.2"]
        for bad in addresses:
            nodes = [node(a, **good | (wrong if a == bad else {})) for a in sorted(addresses)]
            lines = [f for f in doctor.nodes(tmp_path, nodes, []) if f.check == check]
            assert [line.verdict for line in lines] == [verdict]
            assert lines[0].found.startswith(f"{bad}: {says}")
            assert lines[0].remedy

    def test_one_machine_is_not_told_of_twice(self, tmp_path: Path) -> None:
        result = verdicts(doctor.nodes(tmp_path, [node("a", shared_memory_bytes=0)], []))
        assert result == {"shared folder": "ok", "versions": "ok"}

    @pytest.mark.parametrize("blind", [{"reads": False}, {"writes": False}])
    def test_node_that_sees_another_folder(self, tmp_path: Path, blind: dict[str, bool]) -> None:
        result = list(doctor.nodes(tmp_path, [node("a"), node("b", **blind)], []))
        assert result[0].verdict == "fail"
        assert result[0].found.endswith("is another folder on b")

    def test_node_with_other_versions(self, tmp_path: Path) -> None:
        other = preflight.versions() | {"torch": "1.0"}
        result = list(doctor.nodes(tmp_path, [node("a"), node("b", versions=other)], []))
        assert result[1].verdict == "fail"
        assert "1.0 on b" in result[1].found

    def test_silent_node(self, tmp_path: Path) -> None:
        result = next(doctor.nodes(tmp_path, [node("a")], ["c"]))
        assert (result.verdict, result.found) == ("fail", "no answer from c")

    def test_one_core_cannot_train_and_decode(self) -> None:
        assert doctor.resources({"CPU": 1.0}, 1.0).verdict == "fail"
        assert doctor.resources({"CPU": 2.0}, 1.0).verdict == "ok"

    def test_training_is_refused_where_a_node_is_blind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            preflight,
            "survey",
            lambda folder: ([node("a"), node("b", reads=False)], ["c (nothing within 60 s)"]),
        )
        monkeypatch.setattr(preflight, "usable", lambda: [{}])
        preflight.require_shared(tmp_path)  # nobody else is there
        monkeypatch.setattr(preflight, "usable", lambda: [{}, {}])
        with pytest.raises(UserError) as refused:
            preflight.require_shared(tmp_path)
        first, second = str(refused.value).splitlines()
        assert "not the same folder on b: mount a shared" in first
        assert second.startswith("no answer from c (nothing within 60 s): run the command again")

    def test_training_is_refused_where_a_node_lacks_the_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not as images that cannot be read, which would be replaced by hand in vain."""
        (tmp_path / "cam1").mkdir()
        (tmp_path / ".lock").touch()
        looked: list[Any] = []

        def lacking(names: Any) -> dict[Path, list[str]]:
            looked.append(names)
            return {tmp_path / "cam1": ["b"]}

        machines: list[Any] = [{}, {}]
        monkeypatch.setattr(preflight, "_lacking", lacking)
        monkeypatch.setattr(preflight, "usable", lambda: machines)
        with pytest.raises(UserError, match=r"cam1 is here and not on b: data\.root and.*Mount"):
            preflight.require_data([tmp_path, Path("s3:/bucket/set")])
        assert looked == [{tmp_path: ["cam1"]}]
        machines.pop()
        preflight.require_data([tmp_path])

    def test_what_a_node_lacks_is_the_folder_or_a_file_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        assert preflight._first_missing({tmp_path: ["a"]}) is None
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        assert preflight._names(tmp_path) == ["a"], "not a link that leads nowhere here either"
        assert preflight._first_missing({tmp_path: ["a", "b"]}) == tmp_path / "b"
        other = tmp_path / "other"
        assert preflight._first_missing({other: ["a"]}) == other

    def test_commands_whose_nodes_write_into_one_folder_ask_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preflight, "usable", lambda: [{}, {}])
        monkeypatch.setattr(
            preflight, "survey", lambda folder: ([node("a"), node("b", writes=False)], [])
        )
        message = f"{tmp_path} is not the same folder on b"
        config = configuration.validate({"data": {"root": "unused"}}, source="test")
        with pytest.raises(UserError, match=message):
            embed._place(config, tmp_path, None)
        with pytest.raises(UserError, match=message):
            convert._write_shards({0: ["a"]}, tmp_path, packed.Target(str(tmp_path)), None)

    @pytest.mark.ray
    def test_survey_of_a_running_cluster(self, local_ray: None, tmp_path: Path) -> None:
        (result,), silent = preflight.survey(tmp_path)
        assert (result.reads, result.writes, silent) == (True, True, [])
        assert preflight.disagreements([result]) == []
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.ray
    @pytest.mark.parametrize("how", ["slow", "fails", "slow and goes", "fails and goes"])
    def test_survey_of_nodes_that_do_not_answer(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        def look(probe: Path, address: str) -> Any:
            if "fails" in how:
                raise ModuleNotFoundError("No module named 'crossreid'")
            time.sleep(5)

        places = usable()
        rounds = iter([places, [] if "goes" in how else places])
        monkeypatch.setattr(preflight, "usable", lambda: next(rounds))
        monkeypatch.setattr(preflight, "_look_around", ray.remote(num_cpus=0)(look))
        monkeypatch.setattr(preflight, "_TIMEOUT_S", 30.0 if "fails" in how else 2.0)
        result, silent = preflight.survey(tmp_path)
        assert result == []
        if "goes" in how:
            assert silent == []
        else:
            why = "No module named 'crossreid'" if how == "fails" else "nothing within 2 s"
            assert silent == [f"{places[0]['NodeManagerAddress']} ({why})"]

    @pytest.mark.ray
    def test_a_run_is_not_begun_on_a_machine_that_goes(
        self, local_ray: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preflight.require_lasting_place()
        here = ray.get_runtime_context().get_node_id()
        monkeypatch.setattr(state, "get_draining_nodes", lambda: {here: 0})
        with pytest.raises(UserError, match="being taken away"):
            preflight.require_lasting_place()


def test_json_says_whether_all_is_well() -> None:
    fine, warned = Finding("a", "ok", ""), Finding("b", "warn", "", "do this")
    failed = Finding("c", "fail", "")
    assert json.loads(checks.to_json([fine, warned]))["ok"]
    known = json.loads(checks.to_json([fine, failed]))
    assert not known["ok"]
    assert known["findings"][1] == {"check": "c", "verdict": "fail", "found": "", "remedy": ""}
