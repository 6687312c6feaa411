"""Bad inputs as data: every line of the YAML files beside this one gets a clear answer.

Clear is: the exit code of a mistake, the culprit and what to do in the message, no traceback, at
once. A new bad input is one line.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipelines import cli
from pipelines.retrieval import fill
from pipelines.retrieval.sources import Source
from reid_core.datasets import synthetic
from tests.faults import ledger
from tests.pipelines.trained import draw_folder, embed_alone, save_run

HERE = Path(__file__).parent
SOUND = (
    "train demo.yaml --dry-run --out {out} data.root={tree} model.name=crossreid-small "
    "model.pretrained=bundled model.height=64 model.width=32 "
)
HANG_S, HANGS = 60, "still waits"
MAX_S = 3.0  # of this process: a busy machine is no fault of the answer
FAST = 10  # every tenth line runs in the fast suite


def lines(name: str) -> list[dict[str, Any]]:
    """The cases of a file; flow mappings may hold {placeholders}."""
    cases = []
    for number, line in enumerate((HERE / name).read_text().splitlines(), start=1):
        if not line.startswith("- "):
            continue
        for place in ("file", "tree", "out", "dir", "bad"):
            line = line.replace(f"{{{place}}}", f"<{place}>")
        (case,) = yaml.safe_load(line)
        cases.append({"where": f"{name}:{number}", **case})
    return cases


CASES = [
    pytest.param(case, id=case["where"], marks=[] if number % FAST == 0 else [pytest.mark.slow])
    for name in ("recipes.yaml", "settings.yaml", "manifests.yaml", "commands.yaml", "folders.yaml")
    for number, case in enumerate(lines(name))
]


NOT_FINITE = float("nan")
DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "nan": lambda state: state.update(
        module={k: v * NOT_FINITE for k, v in state["module"].items()}
    ),
    "larger": lambda state: state["config"]["model"].update(name="RN50", pretrained="openai"),
    "odd-size": lambda state: state["config"]["model"].update(height=33),
    "tall": lambda state: state["config"]["model"].update(height="tall"),
    "future": lambda state: state["config"].update(later=1),
    "format": lambda state: state.update(format=99),
    "no-module": lambda state: state.pop("module"),
    "list-module": lambda state: state.update(module=[1, 2]),
    "no-progress": lambda state: [state.pop("progress"), state.pop("module")],
    "elsewhere": lambda state: state["config"]["data"].update(root="/nowhere/else"),
}
"""What became of a sound checkpoint, by the name of its folder."""
DAMAGED: tuple[tuple[str, str, bytes | None], ...] = (
    ("run~partial", "*/state.pt", b"PK"),
    ("sound-vectors~parts", "*.parquet", b"PAR1"),
    ("sound-vectors~none", "*.parquet", None),
    ("gallery~data", "*/data/*.lance", b"xxxx"),
    ("gallery~versions", "*/_versions/*", b""),
)
"""Copies whose name ends with what is wrong: the files that are, and what stands in them."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "sysu"
    synthetic.write(root, num_identities=10, seed=1, height=32)
    return root


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What folders.yaml names."""
    root = tmp_path_factory.mktemp("bad")
    run = save_run(root / "run")
    draw_folder(root / "images", visible=4, infrared=4)
    embed_alone(run, Source(root / "images"), root / "sound-vectors")
    fill.add_vectors(root / "gallery", root / "sound-vectors")
    for name, state in (
        ("tensor", torch.ones(3)),
        ("nothing", {"format": 1, "module": {}}),
        ("config", {"format": 1, "config": {"data": 3}, "progress": {}}),
    ):
        (root / name).mkdir()
        torch.save(state, root / name / "state.pt")
    for name, change in DAMAGES.items():
        shutil.copytree(run / "checkpoint_0", root / name)
        state = torch.load(root / name / "state.pt", weights_only=True)
        change(state)
        torch.save(state, root / name / "state.pt")
    for name, file, content in DAMAGED:
        shutil.copytree(root / name.partition("~")[0], root / name)
        for path in (root / name).glob(file):
            path.write_bytes(content) if content is not None else path.unlink()
    line = '{"stage": "align", "epoch": 0}\n'
    for name, text in (
        ("vectors/embedding.json", "[1, 2]"),
        ("empty-vectors/embedding.json", "{}"),
        ("lines/metrics.jsonl", line + '{"stage": "align", "epoch": 1e400}\n[1]\n3\n'),
        ("summary/metrics.jsonl", line),
        ("summary/summary.json", '{"rows": 3}'),
        ("wild/metrics.jsonl", '{"stage": "align", "epoch": 0, "losses": {"total": "NaN"}}\n'),
        ("trials/trials.jsonl", "{}\n"),
        ("begun/config.yaml", "["),
        ("begun/summary.json", "{}"),
        ("other/config.yaml", "seed: 7\ndata: {root: /x}\n"),
        ("other/summary.json", "{}"),
        ("sweep/search.yaml", "{"),
        ("sweep/trials.jsonl", ""),
        ("file", "hello"),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module", autouse=True)
def warm(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imports and the model are read once, so that the clock is that of the answer."""
    out = tmp_path_factory.mktemp("warm")
    for module in ("sweep.tuner", "retrieval.embed", "data.convert", "report.page"):
        importlib.import_module(f"pipelines.{module}")
    call(["gallery", "info", str(out)])
    code, said = call([*shlex.split(SOUND.format(out=out / "run", tree=small))])
    assert code == 0, said


def call(arguments: list[str]) -> tuple[int, str]:
    """(exit code, output) of a command in this process; a traceback is output, too."""
    output = io.StringIO()
    before, handlers = sys.argv, logging.getLogger().handlers[:]
    sys.argv = ["crossreid", *arguments]
    waiting = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(HANG_S)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            cli.main()
        code: Any = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException as error:
        output.write(f"Traceback: {type(error).__name__}: {error}")
        code = -1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, waiting)
        sys.argv = before
        logging.getLogger().handlers[:] = handlers
    return int(code), output.getvalue()


def _hang(*_: Any) -> None:
    raise TimeoutError(HANGS)


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_gets_a_clear_answer(
    case: dict[str, Any],
    small: Path,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    (tmp_path / "dir").mkdir()
    file = tmp_path / "dir" / case.get("name", "recipe.yaml")
    if "bytes" in case:
        file.write_bytes(bytes.fromhex(case["bytes"]))
    elif "text" in case:
        file.write_text(case["text"])
    else:
        file = tmp_path / "none"
    places = {"file": file, "tree": small, "out": tmp_path / "out", "dir": tmp_path / "dir"}
    places["bad"] = bad
    if "set" in case:
        command = shlex.split(SOUND.format(**places))
        said = [case["set"]] if " #" in case["set"] else case["set"].split(" ")
        command += said
    elif "run" in case:
        command = case["run"].split(" ")
    else:
        command = ["data", "check", "manifest", "<file>"]
    for place, path in places.items():
        command = [part.replace(f"<{place}>", str(path)) for part in command]
    expected = case.get("exit", 2 if "set" in case or "run" in case else 1)
    began = time.process_time()
    code, output = call(command)
    seconds = time.process_time() - began
    said = " ".join(output.split())
    problems = {
        "hang": HANGS in said,
        "traceback": "Traceback" in said,
        "silent": code == 0 != expected,
        "unclear": case["says"] not in said or code != expected,
        "slow": seconds > MAX_S,
    }
    outcome = next((name for name, is_so in problems.items() if is_so), "answered")
    ledger.note(f"bad {case['where'].partition('.')[0]}", outcome)
    assert outcome == "answered", f"{outcome} ({code}, {seconds:.1f} s): {said}"
