"""All methods by name: the one place that lists them, each a folder with its `METHOD`."""

from collections.abc import Mapping
from typing import Any

from reid_core.method import Method
from reid_core.methods import bmil, cclnet, cpcl, csdn

METHODS: Mapping[str, Method[Any]] = {
    method.name: method for method in (cclnet.METHOD, bmil.METHOD, csdn.METHOD, cpcl.METHOD)
}
DEFAULT = next(iter(METHODS))
"""The method of a recipe that names none."""
