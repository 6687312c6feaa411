"""What is written about the commands and the tree is what there is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_of_commands_is_their_help() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_commands.py"))
    assert (ROOT / "docs" / "commands.md").read_text() == made["render"](), "run `make docs`"


def test_the_tree_in_the_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## The tree") : readme.index("**Read these six first")]
    words = set(re.findall(r"[a-z_0-9]+", tree))
    for package in ("reid_core", "pipelines"):
        modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert modules <= words, f"missing in the tree: {sorted(modules - words)}"


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_no_product_file_is_longer_than_the_rule() -> None:
    for package in ("reid_core", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            length = len(path.read_text().splitlines())
            assert length <= 400, f"{path.relative_to(ROOT)} has {length} lines"
