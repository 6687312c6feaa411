"""The names under which methods know a backbone; see `backbones` and `text_tower`."""

from reid_core.models.backbones import ASSETS, SMALL, load
from reid_core.models.backbones import Backbone as Clip
from reid_core.models.text_tower import TextTower

__all__ = ["ASSETS", "SMALL", "Clip", "TextTower", "load"]
