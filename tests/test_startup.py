"""What is imported before a command knows that it needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "open_clip", "numba", "pyarrow", "sklearn", "matplotlib", "lancedb")


def imported(statement: str) -> set[str]:
    """Packages that a fresh interpreter holds after a statement."""
    code = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import pipelines", "import reid_core"])
def test_the_packages_alone_import_nothing_heavy(statement: str) -> None:
    assert not imported(statement) & {*HEAVY, "numpy", "rich", "pydantic"}


def test_the_command_line_imports_nothing_heavy_before_a_command_runs() -> None:
    assert not imported("import pipelines.cli") & {*HEAVY, "numpy", "pydantic"}


def test_a_recipe_is_read_and_checked_without_torch() -> None:
    read = "from pipelines import load_config; load_config('demo.yaml', ['data.root=/data'])"
    assert not imported(read) & {*HEAVY} - {"pyarrow"}


def test_the_memory_bank_loads_no_library_of_models() -> None:
    assert not imported("import pipelines.training.actor") & {"open_clip", "timm"}


def test_what_stands_flat_is_what_it_says() -> None:
    import reid_core

    for name in reid_core.__all__:
        assert getattr(reid_core, name).__module__.startswith("reid_core.")
    with pytest.raises(AttributeError, match="has no attribute 'clusters'"):
        reid_core.clusters  # noqa: B018
