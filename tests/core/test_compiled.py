"""What numba compiles works where nothing can be kept, too."""

from __future__ import annotations

from typing import Any

import numba
import pytest

from reid_core.compiled import compiled


def add(a: int, b: int) -> int:
    return a + b


def test_a_user_without_a_writable_folder_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    njit, asked = numba.njit, []

    def without_a_home(*functions: Any, **options: Any) -> Any:
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'add': no locator available")
        return njit(*functions, **options)

    monkeypatch.setattr(numba, "njit", without_a_home)
    assert compiled(fastmath=True)(add)(2, 3) == 5
    assert asked[1] == {"nogil": True, "fastmath": True}


def test_a_function_is_kept_where_it_can_be() -> None:
    remaining: Any = compiled()(add)
    assert remaining(2, 3) == 5
    assert type(remaining._cache).__name__ == "FunctionCache"
