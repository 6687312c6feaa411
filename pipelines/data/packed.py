"""Where a converted data set is written, from any node: a folder or a URI.

Every file is there whole or not at all.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs

from pipelines.config import run as configuration
from pipelines.errors import UserError
from pipelines.storage.files import reason
from pipelines.storage.shards import PART, filesystem

log = logging.getLogger(__name__)
MANIFEST = "manifest.parquet"
PLAN = "images/plan.json"
Plan = dict[str, Any]
"""What decides the content of every shard and of the lists."""
_MOVES = ("rows", "parts")
"""Of a plan, what may change: what was written of it is written again."""
_BEGUN = re.compile(r"\.(json|parquet)\.[0-9a-f]{8}\.partial$")  # see `Target._begin`
_TRIES = 3


class Target:
    """A place that takes one conversion.

    Args:
        location: folder or URI.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def claim(self, plan: Plan) -> None:
        """Keep the plan, or find that it is the one that is kept there already.

        Of what has changed since in the images or their rows, what was written goes first; so does
        what a killed command began and never finished.
        """
        try:
            opened, path = filesystem(self.location)
            opened.create_dir(f"{path}/images", recursive=True)
            if not self.has(PLAN):
                self._remove_begun()
                self.write(PLAN, (json.dumps(plan, indent=1) + "\n").encode())
                return
            with opened.open_input_stream(f"{path}/{PLAN}") as stream:
                stored = json.loads(stream.read())
        except (OSError, ValueError) as error:
            said = reason(error)
            raise UserError(
                f"cannot write to {self.location}: {said.partition('. Detail')[0]}; choose another "
                "folder, or see whose it is"
            ) from error
        stored = {"root": plan["root"], "parts": [], **stored}  # of an older version
        before, now = ({k: x for k, x in one.items() if k not in _MOVES} for one in (stored, plan))
        if changed := "; ".join(configuration.differences(before, now)):
            raise UserError(
                f"{self.location} holds another conversion ({changed}): choose another folder, or "
                "remove that one"
            )
        self._remove_begun()
        if stored != plan:
            known = dict(enumerate(stored["parts"]))
            stale = [i for i, x in enumerate(plan["parts"]) if x != known.get(i)]
            log.warning(
                "%s: the data set has changed since: its rows are listed, %d shards written again",
                self.location,
                len(stale),
            )
            self._remove([MANIFEST, *(PART.format(part) for part in stale)])
            self.write(PLAN, (json.dumps(plan, indent=1) + "\n").encode())

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        opened, path = filesystem(self.location)
        info: arrow_fs.FileInfo = opened.get_file_info(f"{path}/{name}")
        return bool(info.type == arrow_fs.FileType.File)

    def _remove(self, names: Iterable[str]) -> None:
        opened, path = filesystem(self.location)
        for name in names:
            with suppress(FileNotFoundError):
                opened.delete_file(f"{path}/{name}")

    def _remove_begun(self) -> None:
        opened, path = filesystem(self.location)
        infos = [
            info
            for folder in (path, f"{path}/images")
            for info in opened.get_file_info(arrow_fs.FileSelector(folder, allow_not_found=True))
            if info.type == arrow_fs.FileType.File and _BEGUN.search(info.base_name)
        ]
        for info in infos:
            with suppress(FileNotFoundError):
                opened.delete_file(info.path)
        if infos:
            log.warning(
                "%s: removed %d files that an interrupted conversion had begun",
                self.location,
                len(infos),
            )

    def missing(self, num_parts: int) -> list[int]:
        """Shards that are not there."""
        opened, path = filesystem(self.location)
        infos = opened.get_file_info([f"{path}/{PART.format(part)}" for part in range(num_parts)])
        return [part for part, info in enumerate(infos) if info.type != arrow_fs.FileType.File]

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all."""
        opened, path = filesystem(self.location)
        for tries_left in reversed(range(_TRIES)):
            temporary = self._begin(name, content)
            try:
                opened.move(temporary, f"{path}/{name}")
                return
            except FileNotFoundError:  # another command has removed it, see `claim`
                if not tries_left:
                    raise

    def _begin(self, name: str, content: bytes) -> str:
        """A file beside the one that it becomes; returns its path."""
        opened, path = filesystem(self.location)
        temporary = f"{path}/{name}.{uuid.uuid4().hex[:8]}.partial"
        with opened.open_output_stream(temporary) as stream:
            stream.write(content)
        return temporary

    def write_table(self, name: str, table: pa.Table, **options: str | int | bool) -> None:
        """A Parquet file, whole or not at all."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, **options)
        self.write(name, buffer.getvalue())
