"""The tutorial works as it is written: its lines, in its order, in a fresh clone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALLER = {
    "--identities 430": "--identities 40",  # identity 0001 is tested in both
    "data.root=crops": (
        "data.root=crops trainer.num_workers=1 cclnet.clustering.min_samples=2 "
        "cclnet.prompts.epochs=1 "
        + " ".join(
            f"cclnet.{stage}.{key}"
            for stage in ("prepare", "align")
            for key in ("epochs=1", "batches_per_epoch=2", "clusters_per_batch=4")
        )
    ),
    "--port 8000": "--port 18437",
    "127.0.0.1:8000": "127.0.0.1:18437",
    'pip install -c constraints.txt -e ".[export]"': "python -c 'import onnxruntime'",
}
_LIMIT_S = 1800.0


@pytest.mark.slow
@pytest.mark.night
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_every_line_works_in_the_order_given(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    page = (clone / "docs" / "using.md").read_text()
    section = page[page.index("## From crops to search") : page.index("## embed")]
    script = "\n".join(re.findall(r"```\n(.*?)```", section, re.DOTALL))
    for line, smaller in SMALLER.items():
        assert line in script
        script = script.replace(line, smaller)
    places = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(clone),
    }
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-e", "-c", script],
        cwd=clone,
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "in all: identities.gallery",
        "contact sheet: found.html",
        "contact sheet: words.html",
        "Ada: 1 image on the watch list",
        '"image": "3-0001.jpg", "name": "Ada"',
        "probabilities were fitted on pseudo-labels",
        "largest difference to torch",
    ):
        assert said in done.stdout
    result = (clone / "found.html").read_text()
    assert result.count("data:image/jpeg") == 11, "the query and ten answers"
    assert (clone / "runs" / "crops" / "report.html").is_file()
    assert (clone / "found.png").is_file()
    assert "<!DOCTYPE html>" in (clone / "page.html").read_text()
    for answers in ("answers.json", "words.json"):
        assert len(json.loads((clone / answers).read_text())["answers"]) == 5
