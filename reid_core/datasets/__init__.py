"""Loaders: one file per data set, ``read(root) -> Dataset``; pictures are never opened here.

sysu.py      SYSU-MM01
synthetic/   a generated world, written in the layouts of the real data sets
"""

from reid_core.datasets import sysu

READERS = {"sysu": sysu.read}
