"""How the code is built: rooms, arrows, floors, imports, `Any`, long functions and files.

    python -m benchmarks.structure [--detail]

A room is a file or folder directly below a package (the package's own `__init__` is none), an arrow
is one room importing another, once however many of its modules do, and the floors are the longest
chain of arrows. Imports below `TYPE_CHECKING` and inside functions count. "Project imports of a
module" are the different modules of both packages that it names, its own package's `__init__`
included where something is taken from it. A function's lines run from `def` to its last line,
docstring included. Code lines are neither empty nor comments.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("reid_core", "pipelines")
LONG = 60


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file of every module of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of the project that a file imports, the most specific name of each."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
            plain = any(f"{node.module}.{alias.name}" not in known for alias in node.names)
            names |= inner | ({node.module} if plain else set())
    return names & known


def room(name: str) -> str:
    """The file or folder below the package that a module is in."""
    return ".".join(name.split(".")[:2])


def arrows(package: str, all_imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Room -> rooms of the same package that it imports."""
    result: dict[str, set[str]] = defaultdict(set)
    for name, targets in all_imports.items():
        if name.split(".")[0] != package or name == package:
            continue
        result[room(name)] |= {
            room(target)
            for target in targets
            if target.startswith(f"{package}.") and room(target) != room(name)
        }
    return dict(result)


def floors(graph: dict[str, set[str]]) -> int:
    """Length of the longest chain; raises `graphlib.CycleError` where there is a circle."""
    height: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        height[node] = 1 + max((height[below] for below in graph.get(node, ())), default=0)
    return max(height.values(), default=0)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def count_any(path: Path) -> int:
    """Uses of the name `Any`, imports not counted."""
    return sum(
        isinstance(node, ast.Name) and node.id == "Any"
        for node in ast.walk(ast.parse(path.read_text()))
    )


def code_lines(path: Path) -> int:
    """Lines that are neither empty nor comments; docstrings count."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def main() -> None:
    """Print a table per package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detail", action="store_true", help="name arrows, importers, functions")
    detail = parser.parse_args().detail
    files = {package: modules(package) for package in PACKAGES}
    known = {name for package in files.values() for name in package}
    all_imports = {n: imports(p, known) for package in files.values() for n, p in package.items()}
    print("| | " + " | ".join(PACKAGES) + " |\n|---|" + "---|" * len(PACKAGES))
    rows: dict[str, list[object]] = defaultdict(list)
    for package, result in files.items():
        graph = arrows(package, all_imports)
        lines = sum(map(code_lines, result.values()))
        most = max(result, key=lambda name: len(all_imports[name]))
        longest = max(result.values(), key=lambda path: len(path.read_text().splitlines()))
        long = [(f, n) for path in result.values() for f, n in functions(path) if n > LONG]
        rows["rooms"].append(len(graph))
        rows["arrows between rooms"].append(sum(map(len, graph.values())))
        rows["floors"].append(floors(graph))
        rows["modules"].append(len(result))
        rows["most project imports of a module"].append(f"{len(all_imports[most])} ({most})")
        rows["code lines"].append(lines)
        anys = sum(map(count_any, result.values()))
        rows["`Any` per 1,000 code lines"].append(f"{1000 * anys / lines:.1f}")
        rows[f"functions over {LONG} lines"].append(len(long))
        size = len(longest.read_text().splitlines())
        rows["longest file"].append(f"{size} ({longest.relative_to(ROOT)})")
        if detail:
            for node in sorted(graph):
                print(f"{node} -> {', '.join(sorted(graph[node]))}")
            for name in sorted(result, key=lambda name: -len(all_imports[name]))[:8]:
                print(f"{len(all_imports[name]):4} imports: {name}")
            for name in sorted(result, key=lambda name: -count_any(result[name]))[:12]:
                print(f"{count_any(result[name]):4} Any: {name}")
            print(long)
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
