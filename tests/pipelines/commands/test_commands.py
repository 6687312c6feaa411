"""The commands of a user with a trained model: what they print, and what they refuse in words."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines import cli
from pipelines.cluster import doctor
from pipelines.cluster.checks import Finding
from pipelines.errors import Terminated, UserError
from pipelines.evaluation import checkpoint as evaluating
from pipelines.evaluation.encoder import open_encoder
from pipelines.retrieval import embed as embedding
from pipelines.retrieval import export as exporting
from pipelines.retrieval import fill
from pipelines.retrieval import search as searching
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.model_file import Exported
from pipelines.retrieval.sources import Source
from pipelines.retrieval.vectors import read_info
from pipelines.service import deploy
from pipelines.service.plan import Settings
from reid_core.images import as_rgb
from reid_core.types import Modality, Sample
from tests.pipelines.fake_run import fake_run, small_run
from tests.pipelines.trained import draw_folder, embed_alone, random_rows, save_run


@dataclass(frozen=True)
class Place:
    """A folder `[b]` with a trained `run`, `images`, `vectors`, a `gallery` and odd things."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    here = Place(tmp_path_factory.mktemp("commands") / "[b]")
    run = save_run(here / "run")
    images = draw_folder(here / "images", visible=3, infrared=2)
    fill.add_vectors(here / "gallery", embed_alone(run, Source(images), here / "vectors"))
    embed_alone(run, Source(images), here / "half")
    info = json.loads((here / "half" / "embedding.json").read_text())
    (here / "half" / "embedding.json").write_text(json.dumps(info | {"complete": False}))
    Image.new("RGB", (8, 16)).save(here / "who.png")
    (here / "who").mkdir()
    Image.new("RGB", (8, 16)).save(here / "who" / "a.png")
    fake_run(here / "finished", here / "data")
    small_run(here / "unfinished", {"stage": "align", "epoch": 0})
    (here / "file").touch()
    return here


@pytest.fixture(autouse=True)
def opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most refusals come after the encoder was opened: a quarter of a second each."""
    for module in (embedding, searching, exporting, evaluating):
        monkeypatch.setattr(module, "open_encoder", _opened)


_opened = functools.cache(open_encoder)


def said(place: Place, *words: str) -> tuple[int, str]:
    """Exit code and what the command said; words that begin with / lie in `place`."""
    command = [str(place / word[1:]) if word.startswith("/") else word for word in words]
    result = CliRunner().invoke(cli.app, command)
    text = result.output + (str(result.exception) if result.exception else "")
    if result.exception and not isinstance(result.exception, (SystemExit, ValueError, UserError)):
        raise result.exception
    return result.exit_code, " ".join(text.replace("│", " ").split())


def test_gallery_tells_what_it_holds(place: Place) -> None:
    code, text = said(place, "gallery", "add", "/new-gallery", "/vectors")
    assert (code, text.partition(":")[0]) == (0, "5 new, 0 replaced, 5 in all")
    code, text = said(
        place, "gallery", "enroll", "/new-gallery", "Ada", "/who.png", "--as", "visible"
    )
    assert (code, text) == (0, "Ada: 1 image on the watch list")
    alone = ("gallery", "enroll", "/watch-list", "Ada", "/who.png", "--as", "visible")
    assert said(place, *alone)[0] != 0, "no gallery, and nobody said whose"
    assert said(place, *alone, "--checkpoint", "/run")[1] == "Ada: 1 image on the watch list"
    assert said(place, "gallery", "remove", "/watch-list", "--name", "Bea")[0] != 0
    text = said(place, "gallery", "remove", "/watch-list", "--name", "Ada")[1]
    assert text.startswith("1 removed, 0 left")
    code, text = said(place, "gallery", "info", "/new-gallery")
    assert code == 0
    assert "6 vectors of 384 numbers, infrared and visible" in text
    assert "search: exact, recall@10 1.000 watch list: Ada versions 1" in text
    code, text = said(place, "gallery", "remove", "/new-gallery", "visible/0.png")
    assert text.startswith("1 removed, 5 left")
    assert said(place, "gallery", "tidy", "/new-gallery")[0] == 0
    text = said(place, "gallery", "remove", "/new-gallery", "--root", "/elsewhere")[1]
    assert f"holds no row that is added from {place / 'elsewhere'}" in text
    root = read_info(place / "vectors")["root"]
    before = place / "moved-from"
    before.symlink_to(root)
    old = [Sample("of before", Modality.VISIBLE)], random_rows(1, 384, seed=0)
    Gallery.open(place / "new-gallery").add(fill.rows_of(*old, root=str(before)))
    text = said(place, "gallery", "remove", "/new-gallery", "--root", "/moved-from")[1]
    assert text.startswith("1 removed, 5 left"), "none of the place that it leads to now"
    text = said(place, "gallery", "remove", "/new-gallery", "--root", f"{os.path.relpath(root)}/")[
        1
    ]
    assert text.startswith("4 removed, 1 left")


def test_search_prints_a_table_and_writes_a_sheet(place: Place) -> None:
    command = ("search", "/gallery", "/images/visible/2.png", "--as", "visible", "--pid", "3")
    code, text = said(place, *command, "--top", "2", "--out", "/found.html")
    assert code == 0
    assert "nearest to" in text
    assert "1 1.000 visible visible/2.png 2 0." in text
    assert text.endswith("[b]/found.html"), "a bracket in a path is no markup"
    assert (place / "found.html").read_text().count("data:image/jpeg") == 3


def test_export_tells_the_difference_to_torch(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Exported(place / "models" / "visible.onnx", Modality.VISIBLE, 3e-7)]
    monkeypatch.setattr(exporting, "export", lambda *_, **__: made)
    code, text = said(place, "export", "/run", "/models", "--format", "onnx")
    assert (code, text.partition("models/")[2]) == (
        0,
        "visible.onnx: visible, largest difference to torch 3.0e-07",
    )


def test_compare_prints_scores_and_names_its_page(place: Place) -> None:
    shutil.copytree(place / "finished", place / "again")
    code, text = said(place, "compare", "/finished", "/again", "--out", "/compare.html")
    assert code == 0
    assert "38.2" in text
    assert "have no epoch in common whose labels both wrote down" in text
    assert (place / "compare.html").is_file()


def test_report_names_its_page(place: Place) -> None:
    code, text = said(place, "report", "/unfinished")
    assert (code, text.endswith("[b]/unfinished/report.html")) == (0, True)


def test_doctor_prints_remedies_and_fails_where_a_run_would(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(folder: Path, address: str | None) -> Iterator[Finding]:
        yield Finding("faiss", "warn", "not installed", 'pip install -e ".[cpu]"')
        yield Finding("Ray", "fail", f"nothing answers at {address}", "start it")

    monkeypatch.setattr(doctor, "examine", examine)
    code, text = said(place, "doctor", "--address", "auto", "--json", "/doctor.json")
    assert code == 1
    assert 'warn faiss not installed -> pip install -e ".[cpu]"' in text
    assert "fail Ray nothing answers at auto -> start it" in text
    known = json.loads((place / "doctor.json").read_text())
    assert [finding["verdict"] for finding in known["findings"]] == ["warn", "fail"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("embed /nothing /images /out", "no checkpoint in"),
        ("embed /run /nothing /out", "give a folder of images or a manifest"),
        ("embed /run /who /out", "its modality is not known"),
        ("embed /run /images /images", "is not empty and holds no embedding.json"),
        ("embed /run /images /out --modality thermal", "--modality thermal: choose visible"),
        ("embed /run /images /out --dtype float8", "'float8' is not one of"),
        ("gallery add /g /nothing", "give a folder that `crossreid embed` wrote"),
        ("gallery add /g /half", "is not complete: run the same `crossreid embed` again"),
        ("gallery add /file /vectors", "cannot open"),
        ("gallery add /g /vectors --recall 2", "should be less than or equal to 1"),
        ("gallery remove /gallery", "say what to remove"),
        ("gallery enroll /gallery Ada /who.png", "Say --as visible or --as infrared"),
        ("gallery enroll /gallery Ada /no.png --as visible", "no.png"),
        ("gallery info /nothing", "is no gallery"),
        ("watch /gallery /images", "nobody is on the watch list"),
        ("calibrate /run", "is not a folder"),
        ("search /vectors who.png", "holds no vectors"),
        ("search /gallery infrared/0.png --since now", "write a time as"),
        ("search /gallery infrared/0.png --min-probability .9", "run `crossreid calibrate`"),
        ("search /gallery infrared/0.png --version 99", "has no version 99"),
        ("search /gallery", "give an image file or an id of the gallery, or --text"),
        ("search /gallery nobody.png", "neither a file nor an id of this gallery"),
        ("search /gallery /who.png", "Say --as visible or --as infrared"),
        ("search /gallery infrared/0.png --camera 9", "this gallery has"),
        ("search /gallery infrared/0.png --out /found.pdf", "a contact sheet is .html or .png"),
        ("search /gallery infrared/0.png --out /no/found.png", "there is no folder"),
        ("search /gallery --text tall", "add the images again with --space joint"),
        ("export /nothing /out", "no checkpoint in"),
        ("export /run /out --format tflite", "only onnx can be written"),
        ("export /run /file", "cannot write to"),
        ("export /run /out --space words", "'words' is not one of"),
        ("compare /finished", "give two run directories or more"),
        ("compare /finished /finished", "given twice"),
        ("compare /finished /nothing", "metrics.jsonl does not exist"),
        ("compare /finished /unfinished", "has this run finished?"),
        ("report /nothing", "metrics.jsonl does not exist"),
        ("report /file", "metrics.jsonl does not exist"),
        ("report", "Missing argument"),
        ("doctor --out /file", "choose another --out"),
        ("doctor --json /no/doctor.json", "there is no folder"),
        ("doctor --address", "requires an argument"),
        ("eval /nothing", "no checkpoint in"),
        ("eval /run --kind sysu --root /nothing", "nothing"),
        ("eval /run --json /no/scores.json", "there is no folder"),
        ("eval /run --json /images", "it is a folder"),
        ("eval /run --kind sysus --root /images", "sysus"),
        ("eval /run --kind sysu --root /images --split train", "choose test or val"),
    ],
)
def test_what_is_refused_is_named_with_its_remedy(place: Place, command: str, message: str) -> None:
    code, text = said(place, *command.split())
    assert code != 0
    assert message in text


def test_an_error_is_shown_as_it_is_and_ends_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets, as in the name of an extra, are no markup."""

    def fail() -> None:
        raise UserError('pip install -e ".[export]" [/x]')

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert 'error: pip install -e ".[export]" [/x]' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fail", "code", "message"),
    [
        (lambda: as_rgb(Image.new("F", (2, 2))), 2, "whose range is unknown"),
        (lambda: np.concatenate([]), 1, "internal error: ValueError"),
        (lambda: int("x"), 1, "internal error: ValueError"),
        (
            lambda: Path("/nowhere/x").read_text(),
            2,
            "/nowhere/x: No such file or directory: see that",
        ),
        (lambda: Path("/proc/x").mkdir(), 2, "/proc/x: No such file or directory: see that"),
    ],
    ids=["own words", "a library's", "the language's", "a file", "a folder"],
)
def test_only_words_of_our_own_are_the_users_mistake(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fail: Callable[[], object],
    code: int,
    message: str,
) -> None:
    """A library's ValueError names neither culprit nor remedy; a file's error gets both."""
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert message in capsys.readouterr().out


def test_an_error_of_ours_is_a_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from pipelines.report import page

    def broken(run_dir: Path) -> Path:
        raise RuntimeError("boom [/x]")

    monkeypatch.setattr(page, "write", broken)
    monkeypatch.setattr("sys.argv", ["crossreid", "report", str(tmp_path)])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "boom [/x]" in capsys.readouterr().out
    (report,) = tmp_path.glob("crossreid-*.txt")
    assert "Traceback" in report.read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--name", ""), "a name is empty"),
        (("--name", " "), "a name is empty"),
        (("--pid", ""), "unable to parse string as an integer"),
        (("--camera", ""), "unable to parse string as an integer"),
        (("--camera", "1", "--since", ""), "--since is empty"),
        (("--camera", "1", "--until", ""), "--until is empty"),
        (("--camera", "1", "--root", ""), "say what to remove"),
        (("--root", ""), "say what to remove"),
        (("",), "say what to remove"),
        ((), "say what to remove"),
    ],
)
def test_a_variable_that_is_not_set_removes_nothing(
    place: Place, command: tuple[str, ...], message: str
) -> None:
    before = said(place, "gallery", "info", "/gallery")
    code, text = said(place, "gallery", "remove", "/gallery", *command)
    assert code != 0
    assert message in text
    assert said(place, "gallery", "info", "/gallery") == before


def test_a_command_that_cannot_go_on_says_so_when_a_signal_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def running(settings: Settings, **_: object) -> Iterator[None]:
        yield

    def wait() -> None:
        raise Terminated(signal.SIGTERM)

    monkeypatch.setattr(deploy, "running", running)
    monkeypatch.setattr(deploy, "wait", wait)
    monkeypatch.setattr("sys.argv", ["crossreid", "serve", "ids.gallery", "--host", "::1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 143
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "serving ids.gallery at http://[::1]:8000/ (Ctrl-C ends it)",
        "ids.gallery is served no more",
    ]


@pytest.mark.slow
def test_signals_end_with_their_own_exit_codes() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        script = (
            "import os, sys\nfrom pipelines import cli\nfrom pipelines.report import page\n"
            f"page.write = lambda run: os.kill(os.getpid(), {int(number)})\n"
            "sys.argv = ['crossreid', 'report', '/tmp']\ncli.main()"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 128 + number
        assert "the same command goes on" in done.stdout
