"""Loaders: one file per data set, ``read(root) -> Dataset``; pictures are never opened here.

sysu.py      SYSU-MM01
regdb.py     RegDB; option ``trial``, 1 to 10
llcm.py      LLCM
pedes.py     CUHK-PEDES, ICFG-PEDES, RSTPReid: images and captions
folder.py    any images in two folders
manifest.py  any data listed in a CSV, JSON-lines or Parquet file; converted data sets
lists.py     the text files that name identities and images
synthetic/   a generated world, written in the layouts of the real data sets
"""

from collections.abc import Callable

from reid_core.datasets import folder, llcm, manifest, pedes, regdb, sysu
from reid_core.types import Dataset

READERS: dict[str, Callable[..., Dataset]] = {
    "sysu": sysu.read,
    "regdb": regdb.read,
    "llcm": llcm.read,
    "cuhk": pedes.read_cuhk,
    "icfg": pedes.read_icfg,
    "rstp": pedes.read_rstp,
    "folder": folder.read,
    "manifest": manifest.read,
}
