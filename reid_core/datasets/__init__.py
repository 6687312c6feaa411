"""Data sets: one file each, with its reader and its `Layout`; images are never opened here.

layouts.py   what a `Layout` says
sysu.py      SYSU-MM01
regdb.py     RegDB; option ``trial``, 1 to 10
llcm.py      LLCM
pedes.py     CUHK-PEDES, ICFG-PEDES, RSTPReid: images and captions
folder.py    any images in two folders
manifest.py  any data listed in a CSV, JSON-lines or Parquet file; converted data sets
files.py     which files of a tree are images
manifest_rows.py  the rows of a manifest
cell_values.py  what a cell of a table means
lists.py     the text files that name identities and images
roadscene.py  aligned pairs of a street, cut into a tree in SYSU-MM01's layout
recipes.py   trees that a program writes: whether one is there, begun or whole
counts.py    how many identities and images there are, beside what was published
synthetic/   a generated world, written in the layouts of the real data sets
"""

from reid_core.datasets import folder, llcm, manifest, pedes, regdb, sysu
from reid_core.datasets.layouts import Layout

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        sysu.LAYOUT,
        regdb.LAYOUT,
        llcm.LAYOUT,
        *pedes.LAYOUTS,
        folder.LAYOUT,
        manifest.LAYOUT,
    )
}
"""By the name that settings and commands know."""
