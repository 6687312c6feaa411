"""Writes docs/settings.md from the models of a configuration; `make docs` runs it.

What a key means stands under "Attributes" in the docstring of its model, or of one that it inherits
from.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines.config.run import RunConfig

TARGET = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Every key of a recipe. `key=value` on the command line overrides it: `trainer.num_workers=2`,
`cclnet.align.lr=1e-4`, `model.pretrained=null`. Values are YAML. A mapping stands in place of a
whole section: `cclnet.views={}` goes back to its defaults, `cclnet.views={visible: 2}` to all but
one of them, with a warning where the recipe said more. An unknown key is refused before training,
with the keys that are valid there. A run directory holds its own in `config.yaml`.

Of the methods only the section of the chosen `method` counts. The defaults of `cclnet`, `bmil` and
`csdn` are published values, those of `cpcl` a reconstruction ([methods](methods.md)). The keys of a
search file are in [cluster.md](cluster.md), section 5.
"""


def render() -> str:
    """Every section with its keys, defaults and meanings, as Markdown."""
    alike: dict[tuple[type[BaseModel], str], list[str]] = {}  # some stages are optimized alike
    for name, model, values in walk("", RunConfig, {}):
        alike.setdefault((model, json.dumps(values, default=str)), []).append(name)
    tables = (table(names, model, json.loads(values)) for (model, values), names in alike.items())
    return HEAD + "".join(tables)


def walk(
    prefix: str, model: type[BaseModel], given: dict[str, Any]
) -> Iterator[tuple[str, type[BaseModel], dict[str, Any]]]:
    """(name, model, defaults of its own keys) of a section, then of those inside it."""
    fields = model.model_fields
    defaults = {key: given.get(key, field.default) for key, field in fields.items()}
    inner = {key: f.annotation for key, f in fields.items() if inspect.isclass(f.annotation)}
    inner = {key: kind for key, kind in inner.items() if issubclass(kind, BaseModel)}
    yield prefix, model, {key: x for key, x in defaults.items() if key not in inner}
    for key, kind in inner.items():
        known = defaults[key]
        yield from walk(f"{prefix}{key}.", kind, dict(known) if isinstance(known, kind) else {})


def table(names: list[str], model: type[BaseModel], values: dict[str, Any]) -> str:
    """One section: what it is, and a line for each key."""
    about = one_line(inspect.cleandoc(model.__doc__ or "").partition("\nAttributes:")[0])
    title = ", ".join(f"`{name.rstrip('.')}`" for name in names) if names[0] else "The run"
    if len(names) > 1:
        about += " Keys and defaults are the same in each of them."
    lines = [f"\n## {title}\n", f"{about}\n", "| key | default | meaning |", "|---|---|---|"]
    for key, value in values.items():
        field = model.model_fields[key]
        default = "required" if field.is_required() else f"`{json.dumps(value)}`"
        text = meaning(attributes(model).get(key, ""), field)
        lines.append(f"| `{names[0]}{key}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def meaning(remark: str, field: FieldInfo) -> str:
    """What a key does, and the words that it may be where they are not named there."""
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    text = remark.removesuffix(".")
    if not all(f'"{word}"' in text for word in words):
        text += f"; one of {', '.join(f'`{word}`' for word in words)}"
    return text


def attributes(model: type) -> dict[str, str]:
    """Key -> its line under "Attributes" in the docstring; those of the parents count too."""
    result: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        listed = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")[2]
        entries = re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
        result |= {key: one_line(text) for keys, text in entries for key in keys.split(", ")}
    return result


def one_line(text: str) -> str:
    """As a cell of a table; what Python calls None is null in YAML."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("|", r"\|")


if __name__ == "__main__":
    TARGET.write_text(render())
