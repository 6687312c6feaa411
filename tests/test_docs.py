"""What is written about the commands and the tree is what there is."""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.config import run as configuration

ROOT = Path(__file__).parent.parent
FOLDERS = (
    "pipelines", "reid_core", "tests", "benchmarks", "docs", "examples", "tune_configs", "deploy"
)  # fmt: skip
PATH = re.compile(rf"(?<![\w/.])((?:{'|'.join(FOLDERS)})/[\w/]+\.(?:py|md|yaml|sh))\b")
FILES = {".csv", ".html", ".json", ".jsonl", ".md", ".onnx", ".py", ".toml", ".txt", ".yaml"}
HOMES = ("reid_core", "reid_core.methods", "pipelines")


def test_the_page_of_commands_is_their_help() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_commands.py"))
    assert (ROOT / "docs" / "commands.md").read_text() == made["render"](), "run `make docs`"


def test_the_page_of_settings_is_that_of_the_models() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))
    page = made["render"]()
    assert (ROOT / "docs" / "settings.md").read_text() == page, "run `make docs`"
    config = configuration.validate({"data": {"root": "/data"}}, source="test")
    for key in leaves("", config.model_dump()):
        section = key.rpartition(".")[0]  # of several that are alike, the first one's keys stand
        assert f"`{key}`" in page or f", `{section}`" in page, key


def test_every_setting_has_a_meaning() -> None:
    lines = (ROOT / "docs" / "settings.md").read_text().splitlines()
    unexplained = [line for line in lines if line.startswith("| `") and line.endswith("|  |")]
    assert not unexplained, "say it in the docstring of the model"


def leaves(prefix: str, tree: dict[str, Any]) -> Iterator[str]:
    """Dotted keys of a configuration."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}"


def test_the_tree_in_the_readme_names_every_room() -> None:
    """Every file and folder directly below a package, and every folder below those by its path."""
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## The tree") : readme.index("**Read these six first")]
    names = " ".join(re.split(r" {3,}", line.strip())[0] for line in tree.splitlines())
    rooms, words = (set(re.findall(r"[a-z_0-9]+", text)) for text in (names, tree))
    for package in ("reid_core", "pipelines"):
        for path in (ROOT / package).rglob("*"):
            inner = path.relative_to(ROOT / package)
            is_room = len(inner.parts) == 1 and path.suffix == ".py" and path.stem != "__init__"
            is_folder = path.is_dir() and (path / "__init__.py").is_file()
            if is_room or is_folder:
                named = rooms if len(inner.parts) == 1 else words
                assert path.stem in named, f"missing in the tree: {package}/{inner}"


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_files_that_are_named_are_there() -> None:
    """By path, by the module that is run, tests also by name: in pages, code, recipes, make."""
    texts = {path: path.read_text() for path in written()}
    tests = {path.name for path in texts}
    for place, text in texts.items():
        modules = [name.replace(".", "/") for name in re.findall(r"-m (benchmarks[.\w]*\w)", text)]
        missing = [name for name in PATH.findall(text) if not (ROOT / name).is_file()]
        missing += [name for name in re.findall(r"\btest_\w+\.py\b", text) if name not in tests]
        missing += [
            name
            for name in modules
            if not any((ROOT / f"{name}{end}").is_file() for end in (".py", "/__main__.py"))
        ]
        assert not missing, f"{place.relative_to(ROOT)} names {missing}"


def written() -> Iterator[Path]:
    """Files that people write and read: pages, code, recipes, the Makefile."""
    yield from (ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("*.md"))
    for folder in FOLDERS:
        for ending in ("py", "md", "yaml", "sh"):
            yield from (ROOT / folder).rglob(f"*.{ending}")


def test_trainings_that_are_shown_have_valid_settings() -> None:
    """Of every recipe that ships; what a reader would put in place of a name is not looked at."""
    shown = []
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^crossreid train (\w+\.yaml .*)$", text, re.MULTILINE):
            recipe, *words = line.partition(" #")[0].split()
            if (ROOT / "tune_configs" / recipe).is_file():
                given = [word for word in words if "=" in word and not word.startswith("--")]
                shown.append(configuration.load(Path(recipe), ["data.root=/data", *given]))
    assert len(shown) > 10


def test_functions_that_documents_name_are_there() -> None:
    """`losses.cluster_contrast`: what begins with a module's name is in it, or is a setting."""
    settings = (ROOT / "docs" / "settings.md").read_text()
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for name in set(re.findall(r"`([a-z_]+(?:\.\w+)+)`", page.read_text())):
            if Path(name).suffix in FILES or f"`{name}" in settings or f".{name}`" in settings:
                continue
            module = name.partition(".")[0]
            homes = [home for home in HOMES if importlib.util.find_spec(f"{home}.{module}")]
            assert not homes or any(leads_somewhere(x, name) for x in homes), f"{page.name}: {name}"


def leads_somewhere(package: str, name: str) -> bool:
    """Whether a dotted name is a module of a package, or an attribute of one."""
    place: Any = importlib.import_module(package)
    for part in name.split("."):
        if not hasattr(place, part) and isinstance(place, ModuleType):
            with suppress(ModuleNotFoundError):
                importlib.import_module(f"{place.__name__}.{part}")
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


def test_no_product_file_is_longer_than_the_rule() -> None:
    for package in ("reid_core", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            length = len(path.read_text().splitlines())
            assert length <= 400, f"{path.relative_to(ROOT)} has {length} lines"


def test_maps_of_packages_name_their_files() -> None:
    for package in ("reid_core", "pipelines"):
        for path in (ROOT / package).rglob("__init__.py"):
            lines = re.findall(r"^((?:\w+\.py,? +)+)", path.read_text(), re.M)
            named = set(re.findall(r"\w+\.py", "".join(lines)))
            there = {file.name for file in path.parent.glob("*.py")} - {"__init__.py"}
            assert not named or named == there, path.relative_to(ROOT)
