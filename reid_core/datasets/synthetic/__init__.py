"""A generated world of pedestrians, seen in color and in infrared, written as real data sets are.

``write`` makes a target data set; ``catalogue`` the captioned images that a small CLIP starts
from. The two share how a body is drawn, and nothing else: catalogue identities come from another
seed namespace, their camera is clean, and their infrared-like reflectances follow no law.

Knob ``difficulty`` of ``write``: how much of a garment's infrared reflectance its color tells.

- "default": a fixed law of this world from the 16 dyes to reflectance, not monotone and nearly
  uncorrelated with luminance, plus a spread of 0.05 per garment; 20 % of the patterns wash out.
  A start encoder cannot know the law; training on this world's identities can find it.
- "hard": drawn per garment, independently of color. Only shape, hair, skin, cut, pattern and bag
  connect the modalities, and nothing about dyes can be learnt.
- "easy": close to luminance (spread 0.03, 10 % of the patterns wash out), so that a grayscale
  copy already resembles the infrared image.

"hard" need not be harder for a start that knows no law; it leaves less to learn. Scores belong to
one version of the drawings (``layouts.WORLD``) and stand with it in docs/scores.md.

Fixed for all settings: each identity is seen by each camera of SYSU's layout in two tracks of
different views, two frames each in color and three in infrared (other layouts: ``trees.py``);
15 % of the tracks are partly occluded; six places, of which cameras 2 and 3 share one. Everyone's
attributes are independent of their id and split.

Two more numbers decide how far a start gets and how much there is to learn: how much the cameras
differ (``cameras.SYSU_CAMERAS``) and how clear the places are (``scenes._CONTRAST``). Clean
images make a start that training within each modality can only wear down; with these, training
gains what a catalogue cannot teach.

======================  ======================================================================
identities.py           attributes of an identity, drawn independently
captions.py             a sentence and a set of words for an image
drawing.py              the canvas of material codes, patterns
figure.py, heads.py     one body in one pose
palettes.py             colors, infrared reflectances, and the law between them
scenes.py, cameras.py   places, cameras, short tracks, images
sentences.py            what annotators write about an image, with omissions and mistakes
trees.py                layouts: where each data set keeps its images and lists
layouts.py              ``write``: splits, ids, files, expected counts
pretraining.py          ``catalogue``
======================  ======================================================================
"""

from reid_core.datasets.synthetic.layouts import write
from reid_core.datasets.synthetic.pretraining import Catalogue, catalogue

__all__ = ["Catalogue", "catalogue", "write"]
