"""Files are read and written so that nobody else decides which."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines.storage import http
from pipelines.storage.files import (
    UnfitFileError,
    append_line,
    finite,
    read_regular,
    replace_file,
    to_json,
)
from pipelines.storage.shards import location, read_bytes


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("x.png", "zero.png"):
        with pytest.raises(UnfitFileError, match="No regular file"):
            read_bytes(tmp_path / name)


def test_more_bytes_than_allowed_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert read_regular(tmp_path / "a", max_bytes=11) == b"x" * 11
    with pytest.raises(UnfitFileError, match="Larger than"):
        read_regular(tmp_path / "a", max_bytes=10)


def test_a_file_is_replaced_whole_and_a_link_is_not_written_through(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "run" / "a.txt"
    target.parent.mkdir()
    outside.write_text("precious")
    target.symlink_to(outside)
    replace_file(target, "new")
    assert (outside.read_text(), target.read_text()) == ("precious", "new")
    assert not target.is_symlink()

    def fails(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(target, fails)
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "log").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        append_line(tmp_path / "log", "line")
    append_line(tmp_path / "other", "one")
    append_line(tmp_path / "other", "two\n")
    assert (tmp_path / "other").read_text() == "one\ntwo\n"


def test_json_has_finite_numbers_alone() -> None:
    with pytest.raises(ValueError, match=r"rows\.final\[1\] is no number that JSON has"):
        to_json({"rows": {"final": [1.0, float("nan")]}})
    content = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": 2.0, "e": float("inf")}}
    assert json.loads(to_json(finite(content))) == {"b": [1.0, None], "c": {"d": 2.0}}


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "169.254.169.254",
        "::1",
        "::",
        "fe80::1",
        "::ffff:127.0.0.1",
        "100.100.100.200",
        "fd00:ec2::254",
        "224.0.0.1",
    ],
)
def test_special_addresses_are_known(address: str) -> None:
    assert http._is_special(address)


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.1", "8.8.8.8", "2001:4860:4860::8888"])
def test_other_addresses_are_not_special(address: str) -> None:
    assert not http._is_special(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0"])
def test_nothing_is_fetched_from_this_machine(host: str) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises(OSError, match=r"refused|resol|service|known|address"):
            read_bytes(Path(f"http://{host}:{server.server_port}/a.jpg"))
    finally:
        server.shutdown()
        server.server_close()
    assert not asked


def test_a_folder_with_a_colon_is_no_address(tmp_path: Path) -> None:
    (tmp_path / "night:").mkdir()
    (tmp_path / "night:" / "a.jpg").write_bytes(b"x")
    assert location(tmp_path / "night:" / "a.jpg") == str(tmp_path / "night:" / "a.jpg")
    assert read_bytes(tmp_path / "night:" / "a.jpg") == b"x"
    assert location(Path("s3://bucket/set") / "a.jpg") == "s3://bucket/set/a.jpg"
