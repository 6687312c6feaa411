"""Converted data: same records, same pixels, any storage, and a second run that continues."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.config.run import RunConfig
from pipelines.data import check
from pipelines.data.convert import convert
from pipelines.data.packed import PLAN, Target
from pipelines.data.places import Trusted
from pipelines.errors import UserError
from pipelines.storage import shards
from reid_core.datasets import LAYOUTS, manifest, synthetic, sysu
from reid_core.transforms import decode
from reid_core.types import Dataset
from tests.pipelines import small_runs

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("identities") / "sysu"
    synthetic.write(root, num_identities=3, seed=1, height=32)
    return root


def images_of(dataset: Dataset) -> list[str]:
    return [sample.image for split in SPLITS for sample in getattr(dataset, split).samples]


@pytest.mark.parametrize("kind", ["sysu", "regdb", "cuhk"])
def test_records_and_bytes_are_those_of_the_tree(
    without_ray: list[int], tmp_path: Path, kind: str
) -> None:
    root, out = tmp_path / "tree", tmp_path / "packed"
    synthetic.write(root, num_identities=3, seed=2, layout=kind, height=32)
    convert(kind, root, str(out), images_per_shard=40)
    before, after = LAYOUTS[kind].read(root), manifest.read(out)
    assert after.kind == kind
    for split in SPLITS:
        assert getattr(after, split) == getattr(before, split)
    for image in set(images_of(before)):
        assert shards.read_bytes(out / image) == (root / image).read_bytes()
    assert check.check("manifest", out).ok


def test_images_come_in_the_order_that_is_asked_for(
    without_ray: list[int], identities: Path, tmp_path: Path
) -> None:
    convert("sysu", identities, str(tmp_path), images_per_shard=30)
    images = images_of(sysu.read(identities))
    order = np.random.default_rng(0).permutation(len(images))
    asked = [images[i] for i in order]
    packed = shards.Shards(tmp_path)
    assert packed.read_bytes(asked) == [(identities / image).read_bytes() for image in asked]
    with pytest.raises(FileNotFoundError, match="cam1/none"):
        packed.read_bytes(["cam1/none.jpg"])
    with pytest.raises(FileNotFoundError, match="cam1/none"):
        shards.read_bytes(tmp_path / "cam1/none.jpg")


def test_resized_images_give_the_very_pixels_of_the_tree(
    without_ray: list[int], identities: Path, tmp_path: Path
) -> None:
    convert("sysu", identities, str(tmp_path), size="48x20")
    for image in images_of(sysu.read(identities))[::7]:
        packed, own = (shards.read_bytes(root / image) for root in (tmp_path, identities))
        assert Image.open(io.BytesIO(packed)).size == (20, 48)
        np.testing.assert_array_equal(
            decode(packed, height=48, width=20), decode(own, height=48, width=20)
        )


def test_pixels_that_are_resized_twice_are_told_of(
    without_ray: list[int],
    make_config: Callable[..., RunConfig],
    tree: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    convert("sysu", tree, str(tmp_path), size="48x24")
    words = "packed at 48x24 and are resized again"
    for size, expected in (((48, 24), False), ((64, 32), True)):
        chosen = [f"model.height={size[0]}", f"model.width={size[1]}", "data.kind=manifest"]
        small_runs.prepare_data(make_config(*chosen, root=tmp_path))
        assert (words in caplog.text) is expected


def test_a_second_run_writes_only_what_is_missing(
    without_ray: list[int], identities: Path, tmp_path: Path
) -> None:
    first = convert("sysu", identities, str(tmp_path), images_per_shard=30)
    assert (first.num_images, first.num_shards, first.num_written) == (84, 3, 3)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert convert("sysu", identities, str(tmp_path), images_per_shard=30).num_written == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    (tmp_path / shards.PART.format(1)).unlink()
    (tmp_path / "manifest.parquet").unlink()
    assert convert("sysu", identities, str(tmp_path), images_per_shard=30).num_written == 1
    assert without_ray == [0, 1, 2, 1]
    assert manifest.read(tmp_path).test == sysu.read(identities).test


def test_a_second_run_writes_again_what_has_changed_since(
    without_ray: list[int], identities: Path, tmp_path: Path
) -> None:
    tree, out = Path(shutil.copytree(identities, tmp_path / "tree")), tmp_path / "packed"
    convert("sysu", tree, str(out), images_per_shard=30)
    image = images_of(sysu.read(tree))[35]
    content = (tree / images_of(sysu.read(tree))[0]).read_bytes()
    (tree / image).write_bytes(content)
    assert convert("sysu", tree, str(out), images_per_shard=30).num_written == 1
    assert without_ray == [0, 1, 2, 1]
    assert shards.read_bytes(out / image) == content
    with pytest.raises(UserError, match=r"another conversion \(root: \S*tree -> \S*sysu\)"):
        convert("sysu", identities, str(out), images_per_shard=30)


def test_a_conversion_of_an_older_version_is_taken_on(
    without_ray: list[int], identities: Path, tmp_path: Path
) -> None:
    convert("sysu", identities, str(tmp_path), images_per_shard=30)
    plan = json.loads((tmp_path / PLAN).read_text())
    for key in ("root", "parts", "rows"):
        del plan[key]
    (tmp_path / PLAN).write_text(json.dumps(plan))
    assert convert("sysu", identities, str(tmp_path), images_per_shard=30).num_written == 3
    assert convert("sysu", identities, str(tmp_path), images_per_shard=30).num_written == 0


def rows_of_queries(folder: Path, name: str) -> Path:
    """Visible queries against an infrared gallery, named by `name` with {} for a file."""
    lines = ["image,modality,pid,camera,split"]
    for i, (modality, split) in enumerate(
        [("visible", "query"), ("infrared", "gallery"), ("visible", "val"), ("infrared", "val")]
    ):
        Image.new("RGB", (8, 16), (40 * i, 0, 0)).save(folder / f"{i}.png")
        lines.append(f"{name.format(folder / f'{i}.png')},{modality},{i // 2},{i},{split}")
    (folder / "set").mkdir()
    (folder / "set" / "manifest.csv").write_text("\n".join(lines))
    return folder / "set"


@pytest.mark.parametrize("name", ["{}", "file://{}"])
def test_rows_of_a_manifest_keep_their_roles_and_images_from_elsewhere_are_packed(
    without_ray: list[int], tmp_path: Path, name: str
) -> None:
    root, out = rows_of_queries(tmp_path, name), tmp_path / "packed"
    trusted = Trusted((tmp_path,))
    convert("manifest", root, str(out), trusted=trusted)
    before, after = manifest.read(root), manifest.read(out)
    for split in ("val", "test"):
        own, packed = (getattr(dataset, split).samples for dataset in (before, after))
        assert [s.modality for s in own] == [s.modality for s in packed] == ["visible", "infrared"]
        assert [s.pid for s in own] == [s.pid for s in packed]
    contents = {i: (tmp_path / f"{i}.png").read_bytes() for i in range(4)}
    for i in contents:
        (tmp_path / f"{i}.png").unlink()
    assert [shards.read_bytes(out / image) for image in images_of(after)] == [
        contents[sample.camera] for s in SPLITS for sample in getattr(after, s).samples
    ]


def test_rows_that_were_corrected_are_listed_again(without_ray: list[int], tmp_path: Path) -> None:
    root, out = rows_of_queries(tmp_path, "{}"), tmp_path / "packed"
    convert("manifest", root, str(out), trusted=Trusted((tmp_path,)))
    table = root / "manifest.csv"
    table.write_text(table.read_text().replace("infrared,0,1,", "infrared,7,1,"))
    assert convert("manifest", root, str(out), trusted=Trusted((tmp_path,))).num_written == 0
    assert [sample.pid for sample in manifest.read(out).test.samples] == [0, 7]


def test_bytes_of_a_parquet_manifest_are_packed(without_ray: list[int], tmp_path: Path) -> None:
    Image.new("RGB", (8, 16)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    table = {"bytes": [content] * 2, "modality": ["visible", "infrared"], "pid": [1, 1]}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    convert("manifest", tmp_path / "set.parquet", str(tmp_path / "out"))
    for image in images_of(manifest.read(tmp_path / "out")):
        assert shards.read_bytes(tmp_path / "out" / image) == content
    with pytest.raises(OSError, match="No column bytes"):
        shards.read_bytes(tmp_path / "out" / "manifest.parquet#0")


@pytest.mark.parametrize("location", ["{folder}", "file://{folder}"])
def test_what_a_killed_conversion_began_is_removed(
    without_ray: list[int],
    identities: Path,
    tmp_path: Path,
    location: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = location.format(folder=tmp_path)
    begun = [
        f"{name}.0123abcd.partial"
        for name in (shards.PART.format(0), "images/plan.json", "manifest.parquet")
    ]
    others = ["images/thesis.partial", "0123abcd.partial.txt"]
    for name in (*begun, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    convert("sysu", identities, out)
    assert not [name for name in begun if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in others)
    assert "removed 3 files that an interrupted conversion had begun" in caplog.text


def test_a_file_that_another_conversion_took_for_begun_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands that write into one folder disturb each other no more than by that."""
    target, other = Target(str(tmp_path)), Target(str(tmp_path))
    plan = {"root": "x", "parts": []}
    target.claim(plan)
    begun: list[str] = []

    def begin(self: Target, name: str, content: bytes) -> str:
        begun.append(before(self, name, content))
        if len(begun) == 1:
            other.claim(plan)
        return begun[-1]

    before = Target._begin
    monkeypatch.setattr(Target, "_begin", begin)
    target.write("images/part-00000.parquet", b"content")
    assert len(begun) == 2
    assert (tmp_path / "images" / "part-00000.parquet").read_bytes() == b"content"
    assert not list(tmp_path.rglob("*.partial"))


def test_another_conversion_is_not_mixed_in(
    without_ray: list[int], identities: Path, tmp_path: Path
) -> None:
    convert("sysu", identities, str(tmp_path))
    with pytest.raises(UserError, match=r"another conversion \(size: None -> 48x24\)"):
        convert("sysu", identities, str(tmp_path), size="48x24")


def test_unreadable_images_are_named_and_the_other_shards_are_written(
    without_ray: list[int], identities: Path, tmp_path: Path
) -> None:
    root, out = Path(shutil.copytree(identities, tmp_path / "tree")), tmp_path / "packed"
    victim = root / images_of(sysu.read(root))[35]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100])
    with pytest.raises(UserError, match=f"{victim.parent.name}/{victim.name}: not a complete"):
        convert("sysu", root, str(out), size="32x16", images_per_shard=30)
    assert not (out / "manifest.parquet").exists()
    victim.write_bytes(whole)
    assert convert("sysu", root, str(out), size="32x16", images_per_shard=30).num_written == 1


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_uri_is_written_and_read_through_pyarrow_or_fsspec(
    without_ray: list[int], identities: Path, tmp_path: Path, scheme: str
) -> None:
    convert("sysu", identities, f"{scheme}://{tmp_path}")
    image = images_of(sysu.read(identities))[3]
    (result,) = shards.Shards(f"{scheme}://{tmp_path}").read_bytes([image])
    assert result == (identities / image).read_bytes()


def test_storage_without_folders_serves_too(without_ray: list[int], identities: Path) -> None:
    convert("sysu", identities, "memory://packed")
    image = images_of(sysu.read(identities))[5]
    (result,) = shards.Shards("memory://packed").read_bytes([image])
    assert result == (identities / image).read_bytes()
    fsspec.filesystem("memory").rm("packed", recursive=True)


def test_an_image_may_be_a_uri_or_a_row_of_a_parquet_file(identities: Path, tmp_path: Path) -> None:
    image = images_of(sysu.read(identities))[0]
    content = (identities / image).read_bytes()
    assert shards.read_bytes(tmp_path / f"file://{identities / image}") == content
    table = pa.table({"bytes": [b"x", content, b"y"], "modality": ["visible"] * 3})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=2)
    samples = manifest.read(tmp_path / "set.parquet").train.samples
    assert [shards.read_bytes(tmp_path / r.image) for r in samples] == [b"x", content, b"y"]
    with pytest.raises(FileNotFoundError, match="No row 3"):
        shards.read_bytes(tmp_path / "set.parquet#3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "288"}, "expected height x width"),
        ({"kind": "market"}, "unknown layout"),
        ({"kind": "regdb"}, "is no readable regdb data set"),
        ({"out": "nosuch://place"}, "nosuch"),
    ],
)
def test_bad_arguments_are_named(
    identities: Path, tmp_path: Path, arguments: dict, message: str
) -> None:
    given = {"kind": "sysu", "out": str(tmp_path), **arguments}
    with pytest.raises(UserError, match=message):
        convert(given["kind"], identities, given["out"], size=given.get("size"))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.slow
def test_ray_writes_the_shards_it_can_and_names_the_rest(identities: Path, tmp_path: Path) -> None:
    root, out = Path(shutil.copytree(identities, tmp_path / "tree")), tmp_path / "packed"
    first, *_, last = images_of(sysu.read(root))
    (root / first).unlink()
    (root / first).symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match=r"cannot be packed: 1\n  .*No such image"):
        convert("sysu", root, str(out), images_per_shard=50)
    assert [(out / shards.PART.format(part)).exists() for part in (0, 1)] == [False, True]
    table = pq.read_table(out / shards.PART.format(1))
    assert table["bytes"][-1].as_py() == (identities / last).read_bytes()
