"""A generated world of pedestrians, seen in colour and in infrared, written as real data sets are.

``write`` makes a target data set, ``catalogue`` the captioned pictures a small CLIP starts from.

======================  ======================================================================
people.py               attributes of a person, drawn independently
captions.py             a sentence and a set of words for a picture
drawing.py, figure.py   the canvas of material codes; one body in one pose
palettes.py             colours, infrared reflectances, and the law between them
scenes.py, cameras.py   places, cameras, short tracks, pictures
layouts.py              ``write``: splits, ids, files, expected counts
pretraining.py          ``catalogue``
======================  ======================================================================
"""

from reid_core.datasets.synthetic.layouts import write
from reid_core.datasets.synthetic.pretraining import Catalogue, catalogue

__all__ = ["Catalogue", "catalogue", "write"]
