"""Storage that fails for a moment is asked again; what is not there is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.storage import shards


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
    """Errors that the next reads raise, one each."""
    errors: list[OSError] = []
    read = shards._read

    def read_or_fail(path: Path) -> bytes:
        if errors:
            raise errors.pop()
        return read(path)

    monkeypatch.setattr(shards, "_read", read_or_fail)
    monkeypatch.setattr(shards, "_PAUSES_S", (0.0, 0.0, 0.0))
    return errors


def test_a_moment_of_trouble_costs_no_image(failing: list[OSError], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    failing += [OSError("503 slow down"), OSError(116, "Stale file handle"), TimeoutError()]
    assert shards.read_bytes(tmp_path / "a.jpg") == b"pixels"


def test_storage_that_stays_away_is_an_error(failing: list[OSError], tmp_path: Path) -> None:
    failing += [OSError("gone")] * 4
    with pytest.raises(OSError, match="gone"):
        shards.read_bytes(tmp_path / "a.jpg")


def test_what_is_not_there_is_not_waited_for(failing: list[OSError], tmp_path: Path) -> None:
    failing += [OSError("never raised"), FileNotFoundError(2, "No such file")]
    with pytest.raises(FileNotFoundError):
        shards.read_bytes(tmp_path / "a.jpg")
    assert len(failing) == 1
