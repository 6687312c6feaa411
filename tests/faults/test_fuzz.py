"""Readers of what users bring answer any bytes with a value or with one kind of error.

200 examples of each in the fast suite; CROSSREID_FUZZ=10000 is what runs at night (make test-fuzz).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.runs import checkpoint
from pipelines.training import within_epoch
from pipelines.training.progress import Progress
from reid_core.datasets import manifest
from reid_core.types import Dataset
from tests.faults import ledger

EXAMPLES = int(os.environ.get("CROSSREID_FUZZ", "200"))
often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 200,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FIELDS: list[tuple[str, ...]] = []


def leaves(model: Any, path: tuple[str, ...] = ()) -> None:
    """All settings, as paths of keys."""
    for name, field in model.model_fields.items():
        below = getattr(field.annotation, "model_fields", None)
        if below is None:
            FIELDS.append((*path, name))
        else:
            leaves(field.annotation, (*path, name))


leaves(RunConfig)
texts = st.text(max_size=12) | st.sampled_from(["", "no", "~", "1e400", "../x", "\x1b[2J", "[/x]"])
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none()
values: Any = st.recursive(
    texts | numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def noted(request: pytest.FixtureRequest) -> Iterator[None]:
    """All examples of a test count, where none of them failed."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        ledger.ROWS["fuzzed readers"]["answered"] += EXAMPLES


# Recipes -----------------------------------------------------------------------------------------


def read_recipe(folder: Path, data: bytes) -> RunConfig | str:
    """The settings, or the words of the refusal."""
    (folder / "recipe.yaml").write_bytes(data)
    try:
        return configuration.load(folder / "recipe.yaml")
    except UserError as error:
        return str(error).strip()


@often
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_recipe_or_are_refused(folder: Path, data: bytes) -> None:
    assert read_recipe(folder, data)


@often
@given(st.lists(st.tuples(st.sampled_from(FIELDS), values), max_size=4))
def test_any_value_of_any_setting_is_taken_or_refused(
    folder: Path, changes: list[tuple[tuple[str, ...], Any]]
) -> None:
    tree: dict[str, Any] = {"data": {"root": "/data"}}
    for path, value in changes:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
            assume(isinstance(node, dict))
        node[path[-1]] = value
    try:
        text = yaml.safe_dump(tree, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        assume(False)
    config = read_recipe(folder, text.encode("utf-8", "surrogatepass"))
    assert config
    if isinstance(config, RunConfig):  # what is taken can be written down and read again
        again = read_recipe(folder, configuration.dump(config).encode())
        assert isinstance(again, RunConfig)
        assert again.used() == config.used()


# Manifests ---------------------------------------------------------------------------------------

columns = st.sampled_from(
    ["image", "modality", "pid", "camera", "caption", "split", "tracklet", "Image", "x", ""]
)
cells = (
    st.sampled_from(["a.jpg", "visible", "Infrared ", "text", "7.0", "7.9", "nan", "-1", "train"])
    | st.sampled_from(["query", "gallery", "../a.jpg", "s3://b/a", "1e400", str(2**63), '"', "\0"])
    | st.text(max_size=8)
)


def read_manifest(path: Path) -> Dataset | None:
    """The data set, None where it is refused by name; any other answer is no answer."""
    try:
        return manifest.read(path)
    except ValueError as error:
        said = str(error)
    assert path.name in said or str(path.parent) in said
    return None


def is_taken_or_refused(path: Path) -> bool:
    """Whether a manifest is read the same twice, or refused twice; see `read_manifest`."""
    first, second = read_manifest(path), read_manifest(path)
    return first == second


@often
@given(st.sampled_from(["csv", "jsonl", "parquet"]), st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_are_refused(folder: Path, suffix: str, data: bytes) -> None:
    path = folder / f"m.{suffix}"
    path.write_bytes(data)
    assert is_taken_or_refused(path)


@often
@given(st.lists(columns, max_size=6), st.lists(st.lists(cells, max_size=6), max_size=5))
def test_any_table_is_a_manifest_or_its_row_is_named(
    folder: Path, head: list[str], rows: list[list[str]]
) -> None:
    path = folder / "table.csv"
    lines = [",".join(cells) for cells in [head, *rows]]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass", newline="")
    dataset = read_manifest(path)
    if dataset is not None:
        for split in (dataset.train, dataset.val, dataset.test):
            assert all(-1 <= sample.pid < 2**63 for sample in split.samples)


@often
@given(st.lists(st.dictionaries(columns, values, max_size=6) | values, max_size=4))
def test_any_json_lines_are_a_manifest_or_are_refused(folder: Path, rows: list[Any]) -> None:
    path = folder / "lines.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert is_taken_or_refused(path)


# Checkpoints -------------------------------------------------------------------------------------


class Bomb:
    """Runs code where a pickle is loaded without a thought."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


SOUND = saved(
    {
        **{entry: {} for entry in checkpoint.TO_GO_ON_FROM},
        "format": 1,
        "progress": {"stage": "a", "epoch": 0, "handed": {}, "scores": {}},
        "module": {"w": torch.ones(3)},
    }
)
tensors = st.just(torch.ones(2)) | values | st.just(Bomb())


def is_read_or_refused(folder: Path, data: bytes) -> bool:
    """Whether a checkpoint is of this format, or refused by its folder and without torch's advice
    to trust it.
    """
    (folder / checkpoint.STATE).write_bytes(data)
    try:
        state = checkpoint.load(folder)
    except UserError as error:
        return str(folder) in str(error) and "weights_only" not in str(error)
    assert state["format"] == checkpoint.FORMAT
    try:
        state = checkpoint.load_to_go_on_from(folder / checkpoint.STATE)
    except UserError as error:
        return str(folder) in str(error)
    return Progress.from_state(state["progress"]).stage == state["progress"]["stage"]


@often
@given(st.binary(max_size=200))
def test_any_bytes_are_a_checkpoint_or_are_refused(folder: Path, data: bytes) -> None:
    assert is_read_or_refused(folder, data)


@often
@given(
    st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=8),
    st.integers(0, len(SOUND)),
)
def test_a_damaged_checkpoint_is_refused(
    folder: Path, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(SOUND)
    for place, byte in changes:
        data[place] = byte
    assert is_read_or_refused(folder, bytes(data[:length]))
    (folder / checkpoint.WITHIN).write_bytes(bytes(data[:length]))
    state = within_epoch.load(folder, None)
    assert state is None or state["format"] == checkpoint.FORMAT


@often
@given(
    st.dictionaries(st.sampled_from(["format", "config", "progress", "module"]), tensors) | tensors
)
def test_any_object_is_a_checkpoint_or_is_refused_unread(folder: Path, content: Any) -> None:
    assert is_read_or_refused(folder, saved(content))
    with io.BytesIO() as file:  # the pickle of an older torch
        pickle.dump(content, file)
        assert is_read_or_refused(folder, file.getvalue())
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(content))
        assert is_read_or_refused(folder, file.getvalue())
