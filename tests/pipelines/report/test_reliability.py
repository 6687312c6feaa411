"""A reliability diagram shows every bin where it was right and where it was not."""

from __future__ import annotations

import re

from pipelines.report.reliability import chart


def test_a_dot_per_bin_and_the_diagonal() -> None:
    svg = chart([[0.7, 0.1, 0.05], [0.2, 0.5, 0.5], [0.1, 0.9, 0.95]], alt="Reliability, both")
    dots = re.search(r'id="[^"]*PathCollection.*?</g>\s*</g>', svg, re.DOTALL)
    assert dots is not None
    assert len(re.findall(r"<use ", dots[0]) or re.findall(r"<path ", dots[0])) >= 3
    assert 'aria-label="Reliability, both"' in svg
    assert "said, %" in svg
