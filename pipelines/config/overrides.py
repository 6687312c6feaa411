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
    if key in AS_TEXT or (key in _PATHS and text != "null"):
        return key, text  # "", of a shell's variable that is not set, names nothing: no null
    value = files.value(text, said=f"override {override!r}")
    return key, [value] if key in _LISTS and isinstance(value, str) else value


def apply(tree: Tree, override: str) -> None:
    """Set what `key=value` says.

    Raises:
        UserError: not of this form.
    """
    key, value = split_override(override)
    put(tree, key, value, said=f"override {override!r}")


def left_out(tree: Tree, key: str, value: Json | Path) -> list[str]:
    """Keys that a section has and that some keys in its place say nothing of.

    None for `{}`, which says that all of them are to go.
    """
    section: Json = tree
    for part in key.split("."):
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(value, dict) or not value:
        return []
    below = [
        f"{name}.{lost}" for name in section for lost in left_out(section, name, value.get(name))
    ]
    return sorted([*(section.keys() - value.keys()), *below])


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
