"""Jobs that `ray job submit` sends to a cluster: doctor, training, what is uploaded, what fails."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from tests.pipelines.cluster.machines import BIN, ROOT
from tests.pipelines.processes import free_port

_START_S = 180.0


@dataclasses.dataclass(frozen=True)
class Head:
    """A cluster of three nodes on this machine: address of its dashboard, how to call it."""

    dashboard: str
    environment: dict[str, str]
    folder: Path

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of the working tree, as docs/cluster.md says."""
        return subprocess.run(
            [
                "ray",
                "job",
                "submit",
                "--address",
                self.dashboard,
                "--working-dir",
                ".",
                "--",
                *words,
            ],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster as `ray start` makes it. Only the processes that were started here are ended."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
    }
    port, dashboard, agent, client = (free_port() for _ in range(4))
    memory = f"--object-store-memory={200 * 2**20}"
    started: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="j", dir="/tmp", ignore_cleanup_errors=True) as folder:
        logs = Path(folder) / "starts.log"

        def start(*options: str) -> None:
            with logs.open("a") as log:
                command = [f"{BIN}/ray", "start", "--block", memory, *options]
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )

        try:
            start(
                "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
                f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
                f"--temp-dir={folder}",
            )  # fmt: skip
            _wait_until(lambda: _listens(dashboard) and _listens(agent), started, logs)
            for _ in range(2):  # one after the other: Ray gives a node 30 s to come up
                start(f"--address=127.0.0.1:{port}", "--num-cpus=1")
                _wait_until(lambda: _running(logs) == len(started), started, logs)
            yield Head(f"http://127.0.0.1:{dashboard}", environment, Path(folder))
        finally:
            for process in reversed(started):
                _end(process)


@pytest.mark.slow
@pytest.mark.night
class TestJobs:
    def test_doctor_looks_at_every_node(self, head: Head, tmp_path: Path) -> None:
        report, runs = tmp_path / "doctor.json", tmp_path / "runs"
        done = head.submit("crossreid", "doctor", "--out", str(runs), "--json", str(report))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "is the same on 3 node(s)" in done.stdout
        result = {line["check"]: line for line in json.loads(report.read_text())["findings"]}
        assert result["Ray"]["found"].endswith("4 CPUs, 0 GPUs")
        assert "ports" not in result

    def test_nothing_but_source_is_uploaded(self, head: Head) -> None:
        head.submit("true")
        packages = "session_latest/runtime_resources/working_dir_files/_ray_pkg_*/*"
        uploaded = {path.name for path in head.folder.glob(packages)}
        assert {"pipelines", "reid_core", "tune_configs"} <= uploaded
        assert not {".venv", "runs", ".git"} & uploaded

    def test_a_failing_command_fails_the_job_with_its_message(
        self, head: Head, tmp_path: Path
    ) -> None:
        failed = head.submit("crossreid", "train", "no_such_recipe", "--out", str(tmp_path / "x"))
        assert failed.returncode != 0
        assert "no configuration file" in failed.stdout

    def test_training_leaves_its_run_on_the_shared_path(
        self, head: Head, make_config: Callable[..., RunConfig], tmp_path: Path
    ) -> None:
        recipe, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
        recipe.write_text(configuration.dump(make_config()))
        done = head.submit("crossreid", "train", str(recipe), "--out", str(run_dir))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "align   1/1" in done.stdout
        assert "final" in json.loads((run_dir / "summary.json").read_text())["rows"]
        assert (run_dir / "report.html").is_file()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _running(logs: Path) -> int:
    return logs.read_text().count("Ray runtime started")


def _wait_until(ready: Callable[[], bool], started: list[subprocess.Popen], logs: Path) -> None:
    until = time.monotonic() + _START_S
    while not ready():
        assert all(process.poll() is None for process in started), logs.read_text()
        assert time.monotonic() < until, logs.read_text()
        time.sleep(0.5)


def _end(started: subprocess.Popen) -> None:
    """End a `ray start --block` and what it started."""
    if started.poll() is not None:
        return
    head = psutil.Process(started.pid)
    own = [head, *head.children(recursive=True)]
    started.terminate()
    _, alive = psutil.wait_procs(own, timeout=5)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    started.wait()
