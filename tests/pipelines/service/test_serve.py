"""`crossreid serve` as it is started: on Ray Serve, under load, while an encoder is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import psutil
import pytest

pytest.importorskip("lancedb")
pytest.importorskip("fastapi")

from pipelines.retrieval.fill import add_vectors
from pipelines.retrieval.sources import Source
from tests.pipelines.processes import free_port
from tests.pipelines.trained import draw_folder, embed_alone, save_run

pytestmark = [pytest.mark.slow, pytest.mark.night]
CLIENTS, SECONDS = 50, 30.0
_STARTS_S = 180.0


@dataclass(frozen=True)
class Service:
    """A service that runs: where it listens, the process, the images that it knows."""

    url: str
    process: psutil.Process
    images: Path

    def encoders(self) -> list[psutil.Process]:
        """The processes of its encoders."""
        return [
            child
            for child in self.process.children(recursive=True)
            if "ServeReplica:crossreid:encoder" in " ".join(child.cmdline())
        ]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With two encoders, of a gallery that images and sentences can be asked of."""
    root = tmp_path_factory.mktemp("serve")
    run, images = save_run(root / "run"), draw_folder(root / "images", visible=20, infrared=20)
    vectors = embed_alone(run, Source(images), root / "vectors", space="joint")
    add_vectors(root / "gallery", vectors)
    port = free_port()
    command = [str(Path(sys.executable).with_name("crossreid")), "serve", str(root / "gallery")]
    command += ["--port", str(port), "--replicas", "2"]
    with open(root / "log", "w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, cwd=root)
    url = f"http://127.0.0.1:{port}"
    try:
        until_healthy(url, started, root / "log")
        yield Service(url, psutil.Process(started.pid), images)
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)
    assert "Traceback" not in (root / "log").read_text()


def until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + _STARTS_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"did not start: {log.read_text()}")


def test_images_sentences_and_new_images(service: Service) -> None:
    def search(**sent: Any) -> list[dict[str, Any]]:
        answer = httpx.post(f"{service.url}/search", timeout=30, **sent)
        assert answer.status_code == 200, answer.text
        return answer.json()["answers"]

    image = (service.images / "visible" / "2.png").read_bytes()
    first, second = search(files={"image": image}, data={"seen_as": "visible", "top": "2"})
    assert first["id"] == "visible/2.png"
    assert first["similarity"] == pytest.approx(1, abs=1e-3)
    assert second["similarity"] < 0.999
    words = search(data={"text": "a woman in red", "modality": "infrared", "top": "40"})
    assert len(words) == 20
    more = search(data={"id": words[0]["id"], "top": "3"})
    assert len(more) == 3

    draw_folder(service.images, visible=21, infrared=0, first=20)
    new = (service.images / "visible" / "20.png").read_bytes()
    sent: dict[str, Any] = {"files": {"image": new}, "data": {"seen_as": "visible", "camera": "7"}}
    added = httpx.post(f"{service.url}/images", timeout=30, **sent).json()
    assert (added["new"], added["rows"]) == (True, 41)
    (again,) = search(files={"image": new}, data={"seen_as": "visible", "top": "1"})
    assert (again["id"], again["camera"]) == (added["id"], 7)
    assert httpx.get(f"{service.url}/facts").json()["sentences"]
    metrics = httpx.get(f"{service.url}/metrics").text
    assert "crossreid_rows 41.0" in metrics
    assert 'route="/search",status="200"' in metrics
    assert httpx.get(f"{service.url}/").text.startswith("<!DOCTYPE html>")
    broken = httpx.post(f"{service.url}/search", files={"image": b"x"}, data={"seen_as": "visible"})
    assert broken.status_code == 400


def test_the_page_in_a_browser(service: Service, tmp_path: Path) -> None:
    from tests.pipelines.service import test_page as pages  # skips where there is no selenium

    if not (pages.BROWSER and pages.DRIVER):
        pytest.skip("no chromium and chromedriver: apt-get install chromium-driver")
    browser = pages.opened(tmp_path)
    try:
        browser.get(service.url)

        def one(name: str) -> Any:
            return browser.find_element("id", name)

        pages.until(lambda: "rows" in one("facts").text)
        one("image").send_keys(str(service.images / "infrared" / "3.png"))
        browser.find_element("css selector", "input[value=infrared]").click()
        one("go").click()
        pages.until(lambda: "20 answers to the image" in one("message").text)
        one("text").send_keys("a man in a blue coat", "\n")
        pages.until(lambda: "20 answers to the sentence" in one("message").text)
        shown = browser.find_elements("css selector", "#answers img")
        assert all(image.get_property("naturalWidth") for image in shown)
    finally:
        browser.quit()


def test_fifty_clients_get_their_answers(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = asyncio.run(load(service, SECONDS))
    with capsys.disabled():
        sys.stdout.write(f"\n{answers}\n")
    assert set(answers.states) == {200}


def test_a_killed_encoder_loses_no_request(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    before = service.encoders()
    assert len(before) == 2

    async def kill() -> None:
        await asyncio.sleep(3)
        os.kill(before[0].pid, signal.SIGKILL)

    answers = asyncio.run(load(service, 15.0, beside=kill))
    with capsys.disabled():
        sys.stdout.write(f"\nwhile one of two encoders is killed: {answers}\n")
    assert set(answers.states) == {200}, "an image is embedded again by the other encoder"
    end = time.monotonic() + _STARTS_S
    while len(service.encoders()) < 2 and time.monotonic() < end:
        time.sleep(0.5)
    assert len(service.encoders()) == 2, "another one takes its place"


@dataclass(frozen=True)
class Answers:
    """How many of each status there were, and the seconds that each took."""

    states: Counter
    seconds: list[float]

    def __str__(self) -> str:
        p50, p95 = np.percentile(self.seconds, [50, 95]) * 1000
        return (
            f"{CLIENTS} clients, {sum(self.states.values())} requests, "
            f"statuses {dict(self.states)}, p50 {p50:.0f} ms, p95 {p95:.0f} ms"
        )


async def load(service: Service, seconds: float, *, beside: Any = None) -> Answers:
    """Image queries of clients that each ask again as soon as they are answered."""
    states: Counter = Counter()
    times: list[float] = []
    images = [path.read_bytes() for path in sorted((service.images / "visible").iterdir())]
    end = time.monotonic() + seconds

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            number += 1
            try:
                answer = await client.post(
                    f"{service.url}/search",
                    files={"image": images[number % len(images)]},
                    data={"seen_as": "visible", "top": "5"},
                )
                states[answer.status_code] += 1
            except httpx.HTTPError as error:
                states[type(error).__name__] += 1
            times.append(time.monotonic() - began)

    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        tasks = [ask(client, number) for number in range(CLIENTS)]
        if beside is not None:
            tasks.append(beside())
        await asyncio.gather(*tasks)
    return Answers(states, times)
