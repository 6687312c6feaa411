"""A sweep over loss weights from Python: `python examples/sweep.py TREE OUT`.

TREE is a data set in SYSU-MM01's layout, `crossreid data synth TREE --identities 150` draws one.
Trials run on Ray, are judged on validation identities, and are kept: the same call with
`resume=True` goes on.
"""

import sys
from pathlib import Path

from pipelines.sweep import search_space, tuner

tree, out = sys.argv[1:3]
study = search_space.load(
    Path("search_demo.yaml"),
    [f"data.root={tree}", *sys.argv[3:]],
)
trials, best = tuner.search_for_best(study, Path(out), sys.argv, resume=False)
for trial in trials:
    print(trial.name, trial.config, trial.scores)
print("best:", best.config, "as a recipe:", Path(out) / "best.yaml")
