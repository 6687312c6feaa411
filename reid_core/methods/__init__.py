"""Published methods by name; `reid_core.stages` says what each module provides."""

from types import ModuleType

from reid_core.methods import cclnet, cpcl, csdn

METHODS: dict[str, ModuleType] = {"cclnet": cclnet, "csdn": csdn, "cpcl": cpcl}
