"""YAML as users write it: refused where it can be read in two ways or hides something.

A key that stands there twice, an alias (a few of which fill the memory), an empty file and one that
is no text are errors that name the file and the line.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from pathlib import Path
from typing import TypeAlias

import yaml

from pipelines.errors import UserError
from pipelines.storage.files import Json

Tree: TypeAlias = dict[str, Json]
"""Settings by key, sections within sections."""
_MAX_BYTES = 2**20
_SHIPPED = Path(__file__).resolve().parents[2] / "tune_configs"
_SEARCH = "search_"
_TEXT = "tag:yaml.org,2002:str"


def read(path: Path, *, as_text: Collection[str] = ()) -> Tree:
    """The mapping that a YAML file holds.

    Args:
        path: an existing file.
        as_text: dotted keys whose values stay as they are written: a folder may be called "no",
            "0x1F" or "2024".

    Raises:
        UserError: names the file, and where one is known the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path} has more than a megabyte: it is no recipe")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16 text: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): it is no recipe, or "
            "was saved in another encoding"
        ) from error
    try:
        content = _load(text, as_text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_in_words(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {_unread(error)}") from error
    if content is None:
        raise UserError(f"{path} is empty: a recipe names at least method and data.kind")
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of keys to values")
    return content


def find_recipe(path: Path) -> Path:
    """The file of a recipe, given by its path or by the name of one that ships.

    Raises:
        UserError: there is none; names those that ship.
    """
    names = ", ".join(stem for stem in _stems() if not stem.startswith(_SEARCH))
    return _find(path, f"no configuration file {path}; the recipes that ship are: {names}")


def find_search(path: Path) -> Path:
    """The file of a sweep, given by its path or by the name of one that ships.

    Raises:
        UserError: there is none; names those that ship.
    """
    names = ", ".join(stem for stem in _stems() if stem.startswith(_SEARCH))
    return _find(path, f"no search file {path}; those that ship are: {names}")


def _find(path: Path, refusal: str) -> Path:
    for candidate in (path, _SHIPPED / path.name, _SHIPPED / f"{path.name}.yaml"):
        if candidate.is_file():
            return candidate
    raise UserError(refusal)


def _stems() -> list[str]:
    return sorted(file.stem for file in _SHIPPED.glob("*.yaml"))


def value(text: str, *, said: str) -> Json:
    """The value that a piece of YAML stands for.

    Raises:
        UserError: it stands for none; begins with `said`.
    """
    try:
        return _load(text, ())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = _in_words(error) if isinstance(error, yaml.YAMLError) else _unread(error)
        raise UserError(f"{said}: the value is not valid YAML: {reason}") from error


def _load(text: str, as_text: Collection[str]) -> Json:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        for key in as_text:
            _keep_text(root, key.split("."))
        content: Json = None if root is None else loader.construct_document(root)
        return content
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML without aliases and without keys that stand there twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Json]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a word", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} stands in line {seen[key.value]} already",
                    problem_mark=key.start_mark,
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)


def _keep_text(node: yaml.Node | None, keys: list[str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for name, child in node.value:
        if name.value != keys[0]:
            continue
        if len(keys) > 1:
            _keep_text(child, keys[1:])
        elif isinstance(child, yaml.ScalarNode):
            child.tag = _TEXT


def _unread(error: Exception) -> str:
    deep = isinstance(error, RecursionError)
    return "it is nested too deeply" if deep else "a number or a date is none that can be meant"


def _in_words(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"line {mark.line + 1}: {problem}" if mark else problem
