"""The results as Markdown: a table per step, a line per case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_table(results: Path, out: Path) -> None:
    """Write all lines of a results file as tables."""
    lines = [json.loads(text) for text in results.read_text().splitlines()]
    text = ["# Measured on a GPU\n"]
    machine = [line for line in lines if line["step"] == "machine"][-1:]
    for line in machine:
        text.append(", ".join(f"{k} {v}" for k, v in line.items() if k != "step") + "\n")
    for step in dict.fromkeys(line["step"] for line in lines if line["step"] != "machine"):
        own = [line for line in lines if line["step"] == step]
        text.append(f"## {step}\n")
        text.append(_tables([line for line in own if "error" not in line]))
        text += [f"failed: {_first(line)}\n" for line in own if "error" in line]
    out.write_text("\n".join(text))


def _tables(lines: list[dict[str, Any]]) -> str:
    """One table for consecutive lines of the same keys."""
    text, heads = "", []
    for line in lines:
        cells = {key: value for key, value in line.items() if key != "step"}
        if list(cells) != heads:
            heads = list(cells)
            text += ("\n" if text else "") + "| " + " | ".join(heads) + " |\n"
            text += "|" + "---|" * len(heads) + "\n"
        text += "| " + " | ".join(_cell(value) for value in cells.values()) + " |\n"
    return text


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(entry)}" for key, entry in value.items())
    return "-" if value is None else str(value)


def _first(line: dict[str, Any]) -> str:
    """The case and the last line of its failure."""
    last = line["error"].strip().splitlines()[-1:] or [""]
    return f"{line.get('case')} ({line.get('exit', 'error')}): {last[0][:300]}"
