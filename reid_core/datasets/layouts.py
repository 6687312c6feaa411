"""What there is to know about a data set: how it is read, how it is measured, what was published.

Every data set describes itself in a `Layout` beside its reader, `reid_core.datasets` collects them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reid_core.protocols import Trial
from reid_core.types import Dataset, Modality, Split

Number = int | tuple[int, int] | list[int]
Expected = Mapping[str, Mapping[str, Mapping[str, Number]]]
"""Per split ("train+val" for both together) and modality: "ids", "cameras", "images", "captions";
a pair of numbers is a range."""


@dataclass(frozen=True)
class Layout:
    """One data set, or one way of laying out own data.

    Attributes:
        name: that the settings and the command line call it by.
        title: that a page shows.
        reader: root -> `Dataset`; opens no image. With the keyword `trial` where there are trials.
        protocol: test split -> the trials that are measured; raises ValueError where the split
            lacks what they need.
        headline: name of the trials that a summary shows, "<protocol>/<mode>/<direction>".
        headline_words: the same for readers.
        published: numbers of the papers and of the data set's own page; what no source states is
            left out.
        num_trials: divisions of the identities, numbered from 1, each with a model of its own;
            0 where there is one division.
        has_paths: whether its list says where each image lies. Then the root may be a URI, and no
            path may leave it through a link.
    """

    name: str
    title: str
    reader: Callable[..., Dataset]
    protocol: Callable[[Split], Iterator[Trial]]
    headline: str
    headline_words: str
    published: Expected = field(default_factory=dict)
    num_trials: int = 0
    has_paths: bool = False

    @property
    def has_trials(self) -> bool:
        """Whether published scores are means over models of several divisions."""
        return self.num_trials > 0

    @property
    def trials(self) -> range:
        """Numbers of the divisions."""
        return range(1, 1 + self.num_trials)

    @property
    def asked(self) -> tuple[Modality | None, Modality | None]:
        """Modalities of the headline's queries and answers, None where rows say it."""
        names = self.headline.rpartition("/")[2].replace("image", "visible").split("_to_")
        first, second = (Modality(name) if name in list(Modality) else None for name in names)
        return first, second

    def read(self, root: Path, *, trial: int = 1) -> Dataset:
        """List the data set below a root; `trial` counts where there are some.

        Raises:
            ValueError: the tree is not of this layout.
        """
        return self.reader(root, trial=trial) if self.has_trials else self.reader(root)
