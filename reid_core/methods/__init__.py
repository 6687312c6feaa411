"""Published methods by name; `reid_core.method` says what each module provides."""

from types import ModuleType

from reid_core.methods.bmil import between_epochs as bmil
from reid_core.methods.cclnet import between_epochs as cclnet
from reid_core.methods.cpcl import between_epochs as cpcl
from reid_core.methods.csdn import between_epochs as csdn

METHODS: dict[str, ModuleType] = {"cclnet": cclnet, "bmil": bmil, "csdn": csdn, "cpcl": cpcl}
