"""One word per concept: those that were given up stay away, but where a user still says them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from reid_core.methods import METHODS

ROOT = Path(__file__).parent.parent
CODE = ("reid_core", "pipelines", "tests", "benchmarks", "examples", "docs")
PROSE = ("tune_configs", "deploy")

VERBS = "found|told|gone|mine|kept"
VARIABLE = re.compile(
    rf"^\s*(?:{VERBS})(?:\s*:[^=\n]+)?\s*=(?!=)"  # found = ..., found: dict[str, int] = ...
    rf"|\bfor (?:\w+, )*(?:{VERBS}) in\b|\bas (?:{VERBS}):|[(,]\s*(?:{VERBS}): \w",
    re.M,
)
# a name of the code that is put together with underscores, or a variable
NAME = re.compile(
    r"(?<![a-z])(?:people|persons?|pictures?)_\w|\w_(?:people|persons?|pictures?)\b|"
    r"\b(?:PEOPLE|PERSONS?|PICTURES?)\b|\b(?:people|pictures?)\(|"
    r"^\s*(?:people|persons?|pictures?) = ",
    re.M,
)
BRITISH = re.compile(
    r"[Cc]olour|[Nn]eighbour|[Bb]ehaviour|[Ff]avour|[Cc]entre|[Ll]abell|[Gg]r"
    "ey|"
    r"(?:ptim|ormal|oken|ummar|aster|rgan|inim|axim|ecogn|nitial|ynchron)is[ei]"
)
PEOPLE = re.compile(r"\b(?:people|persons?)\b")

# Where an old word has to stand, and why.
ALLOWED = {
    # users' files of version 0.1 say them
    "pipelines/config/run.py": ("ptimise", "neighbour", "centre"),
    # a key of what exported models say of themselves
    "reid_core/images.py": ("grey",),
    # format 1 of checkpoints
    "pipelines/training/state.py": ("ptimise",),
    "pipelines/runs/released.py": ("ptimise",),
    "pipelines/runs/records.py": ("ptimise",),
    "pipelines/runs/checkpoint.py": ("ptimise",),
    # what a generated person wears, in its captions: other words would be another data set
    "reid_core/datasets/synthetic/sentences.py": ("grey",),
    # the papers' prompt: "A photo of a X X X X person."
    "reid_core/models/prompts.py": ("person",),
}
# Pages for readers who know no identities: the report, and what a method says there.
FOR_LAYMEN = ("pipelines/report/", "/words.py", "pipelines/service/", "synthetic/", "pretraining/")


def files(folders: tuple[str, ...], *endings: str) -> Iterator[tuple[str, str]]:
    """Path below the root and text of every file of some folders."""
    for folder in folders:
        yield from ((name, text) for name, text in _files_below(folder) if name.endswith(endings))


@cache
def _files_below(folder: str) -> list[tuple[str, str]]:
    names = (Path(at) / name for at, _, names in os.walk(ROOT / folder) for name in names)
    return [
        (path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(names)
        if path.suffix in (".py", ".md", ".yaml", ".html") and path != Path(__file__)
    ]


def places(pattern: re.Pattern[str], texts: Iterator[tuple[str, str]]) -> list[str]:
    """file:line: word of every hit that is not allowed."""
    hits = []
    for name, text in texts:
        for hit in pattern.finditer(text):
            word = hit.group().strip()
            if any(old in word.lower() for old in ALLOWED.get(name, ())):
                continue
            hits.append(f"{name}:{text.count(chr(10), 0, hit.start()) + 1}: {word}")
    return hits


def test_variables_have_nouns() -> None:
    assert not places(VARIABLE, files(CODE, ".py"))


def test_names_say_identity_and_image() -> None:
    assert not places(NAME, files(CODE, ".py"))


def test_spelling_is_torchs() -> None:
    pages = ((path.name, path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("*.md")))
    code = files(CODE + PROSE, ".py", ".md", ".yaml", ".html")
    assert not places(BRITISH, pages) + places(BRITISH, code)


def test_the_code_speaks_of_identities() -> None:
    texts = files(("reid_core", "pipelines"), ".py")
    plain = (
        (name, re.sub(r"[Pp]erson (?:re-id|[Rr]etrieval|[Ss]earch)", "", text))
        for name, text in texts
        if not any(part in name for part in FOR_LAYMEN)
    )
    assert not places(PEOPLE, plain)


def test_benchmarks_are_imported_by_nothing() -> None:
    pattern = re.compile(r"^\s*(?:from|import) benchmarks\b", re.M)
    assert not places(pattern, files(("reid_core", "pipelines", "tests", "examples"), ".py"))


def test_the_machinery_knows_no_method_by_name() -> None:
    pattern = re.compile(rf"[\"'](?:{'|'.join(METHODS)})[\"']")
    assert not places(pattern, files(("pipelines",), ".py"))
