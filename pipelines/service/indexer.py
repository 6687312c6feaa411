"""Indexes that grow beside requests: an addition does not wait for minutes of building."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from pipelines.retrieval.gallery import Gallery


class Indexer:
    """Takes what requests have added into the index, in one thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._waiting: set[str] = set()
        self._lock = Lock()

    def ask(self, gallery: Gallery) -> None:
        """Look at a table soon; one that waits already is looked at once."""
        with self._lock:
            if gallery.facts.table in self._waiting:
                return
            self._waiting.add(gallery.facts.table)
        self._pool.submit(self._look, gallery)

    def _look(self, gallery: Gallery) -> None:
        with self._lock:
            self._waiting.discard(gallery.facts.table)
        gallery.keep_indexed()
