"""What servers answer: what may pass is asked again, what lasts is said once, and half is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data import check
from pipelines.data.places import Trusted
from pipelines.storage import http, shards
from pipelines.storage.files import UnfitFileError
from pipelines.storage.shards import read_bytes

BODY = b"0123456789"


@dataclass
class Server:
    """Answers every GET with the next of `codes`, the last of them again and again."""

    codes: list[int] = field(default_factory=lambda: [200])
    announced: int = len(BODY)
    location: str = ""
    asked: list[str] = field(default_factory=list)
    root: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine, which is allowed for once, and no pause between two tries."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            code = state.codes.pop(0) if len(state.codes) > 1 else state.codes[0]
            self.send_response(code)
            if state.location:
                self.send_header("Location", state.location)
            self.send_header("Content-Length", str(state.announced if code == 200 else 0))
            self.end_headers()
            if code == 200:
                self.wfile.write(BODY)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(http, "_is_special", lambda address: False)
    monkeypatch.setattr(shards, "_PAUSES_S", (0.0, 0.0, 0.0))
    opened = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.root = f"http://127.0.0.1:{opened.server_port}"
    threading.Thread(target=opened.serve_forever, args=(0.02,), daemon=True).start()
    yield state
    opened.shutdown()
    opened.server_close()


@pytest.mark.parametrize("code", [500, 502, 503, 504, 429, 408])
def test_an_error_that_may_pass_is_asked_again_until_it_has_passed(
    server: Server, code: int
) -> None:
    server.codes = [code, code, 200]
    assert read_bytes(Path(f"{server.root}/a.jpg")) == BODY
    assert server.asked == ["/a.jpg"] * 3


@pytest.mark.parametrize("code", [503, 429])
def test_an_error_that_does_not_pass_is_told_as_it_is(server: Server, code: int) -> None:
    server.codes = [code]
    with pytest.raises(OSError, match=f"The server answers {code}") as error:
        read_bytes(Path(f"{server.root}/images/a.jpg"))
    assert not isinstance(error.value, (FileNotFoundError, UnfitFileError))
    assert server.asked == ["/images/a.jpg"] * 4  # and for no index above it


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (404, FileNotFoundError),
        (410, FileNotFoundError),
        (401, PermissionError),
        (403, PermissionError),
        (400, UnfitFileError),
        (418, UnfitFileError),
    ],
)
def test_what_lasts_is_asked_once(server: Server, code: int, kind: type[OSError]) -> None:
    server.codes = [code]
    with pytest.raises(kind, match=f"The server answers {code}"):
        read_bytes(Path(f"{server.root}/images/a.jpg"))
    assert server.asked == ["/images/a.jpg"]


def test_a_body_that_was_cut_is_no_image(server: Server) -> None:
    server.announced = 1000
    with pytest.raises(OSError, match=f"ended after {len(BODY)} of 1000 bytes"):
        read_bytes(Path(f"{server.root}/a.jpg"))
    assert len(server.asked) == 4


def test_a_body_that_is_too_large_is_not_called_cut(server: Server) -> None:
    with pytest.raises(UnfitFileError, match="Larger than"):
        http.read(f"{server.root}/a.jpg", max_bytes=9)
    assert http.read(f"{server.root}/a.jpg", max_bytes=10) == BODY


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/a.jpg", "file:///etc/passwd"])
def test_http_leads_to_http_alone(server: Server, location: str) -> None:
    server.codes, server.location = [302], location
    with pytest.raises(UnfitFileError):
        read_bytes(Path(f"{server.root}/a.jpg"))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:x/a.jpg", "nobody-opens-this://a/b.jpg", "a\0b.jpg"]
)
def test_a_name_that_nothing_can_open_is_an_error_of_storage(name: str) -> None:
    with pytest.raises(UnfitFileError):
        read_bytes(Path(name))


def test_a_check_goes_on_behind_a_dead_url(server: Server, tmp_path: Path) -> None:
    server.codes = [503]
    rows = ["image,modality,pid,camera,split"]
    for pid in range(2):
        Image.new("RGB", (16, 32), (pid, 0, 0)).save(tmp_path / f"{pid}.png")
        rows.append(f"{pid}.png,visible,{pid},0,train")
    rows.append(f"{server.root}/dead.png,visible,1,0,train")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    result = check.check("manifest", tmp_path, trusted=Trusted(allow_http=True))
    (unreadable,) = (problem for problem in result.problems if "unreadable" in problem.what)
    assert unreadable.what == "unreadable: 1 image"
    assert "The server answers 503" in unreadable.examples[0]
    assert result.sizes["visible"] == [[32, 16], [32, 16]]
