"""What several commands take, and what they do with it: options, clusters, files of results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.errors import UserError
from pipelines.storage.files import replace_file

Out = Annotated[Path, typer.Option("--out", help="Run directory; made if it does not exist.")]
Space = Annotated[
    Literal["descriptor", "joint"],
    typer.Option(help="descriptor, or joint: CLIP's space, where sentences can be asked too."),
]
Gpu = Annotated[
    bool | None,
    typer.Option(
        "--gpu/--cpu",
        help="Wait for a free GPU, or take none; default: GPUs that are free, or else CPU cores.",
    ),
]
Trial = Annotated[
    int | None,
    typer.Option(help="Which of RegDB's ten divisions; default: that of the run.", min=1, max=10),
]


def ray_address() -> str | None:
    """Inside a Ray job the cluster is the one that the job runs on; None for a Ray of our own."""
    return "auto" if os.environ.get("RAY_ADDRESS", "") not in ("", "local") else None


def check_target(path: Path | None) -> None:
    """Refuse a result file that cannot be written, before the work that it is to hold.

    Raises:
        UserError: no such folder, or the name of one.
    """
    if path is not None and not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if path is not None and path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")


def write_text(path: Path, text: str) -> None:
    """Write a result.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # /dev/stdout
            path.write_text(text)
        else:
            replace_file(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file") from error


def of_environment() -> list[str]:
    """Overrides that the environment asks for."""
    return [f"ray.address={address}"] if (address := ray_address()) else []
