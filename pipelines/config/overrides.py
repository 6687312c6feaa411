"""`key=value` on the command line: what it says, and where it goes in the tree of a recipe."""

from __future__ import annotations

from pathlib import Path

from pipelines.config import files
from pipelines.config.files import Tree
from pipelines.errors import UserError
from pipelines.storage.files import Json

# Values that are paths or names of files stay as they are written: a folder may be called "no".
AS_TEXT = ("data.root",)
_PATHS = ("start_from", "model.pretrained", "model.name", "ray.address", "ray.namespace")
_LISTS = ("data.extra_roots",)


def split_override(override: str) -> tuple[str, Json]:
    """Key and value of `key=value`; the value is YAML, but for those of paths, which stay as typed.

    Raises:
        UserError: not of this form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} must look like section.key=value")
    if key in AS_TEXT or (key in _PATHS and text not in ("null", "")):
        return key, text
    value = files.value(text, said=f"override {override!r}")
    return key, [value] if key in _LISTS and isinstance(value, str) else value


def apply(tree: Tree, override: str) -> None:
    """Set what `key=value` says.

    Raises:
        UserError: not of this form.
    """
    key, value = split_override(override)
    put(tree, key, value, said=f"override {override!r}")


def put(tree: Tree, key: str, value: Json | Path, *, said: str) -> None:
    """Set a dotted key; `said` is how the user said it.

    Raises:
        UserError: a part of the key in front of the last is a value.
    """
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"{said}: {parent} is a value, not a section")
        node = child
    node[leaf] = str(value) if isinstance(value, Path) else value
