"""A manifest does not decide which files of a machine are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data import roots
from pipelines.data.places import ROOT_ALONE, Trusted
from pipelines.errors import UserError
from pipelines.retrieval.sources import Source


def write(root: Path, image: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "manifest.csv").write_text(f"image,modality\n{image},visible\n")
    return root


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("../x.png", "lies outside"),
        ("a/../../x.png", "lies outside"),
        ("/etc/x.png", "lies outside"),
        ("file:///etc/x.png", "lies outside"),
        ("s3://other/x.png", "lies outside"),
        ("gs://other/x.png", "lies outside"),
        ("http://127.0.0.1/x.png", "data.allow_http"),
        ("HTTP://169.254.169.254/latest", "data.allow_http|lies outside"),
        ("linked/x.png", "lies outside"),
        ("link.png", "lies outside"),
    ],
)
def test_what_lies_elsewhere_is_refused_for_training_and_embedding(
    tmp_path: Path, image: str, message: str
) -> None:
    root = write(tmp_path / "root", image)
    (tmp_path / "x.png").write_bytes(b"")
    (root / "linked").symlink_to(tmp_path)
    (root / "link.png").symlink_to(tmp_path / "x.png")
    with pytest.raises(UserError, match=message):
        roots.read("manifest", root)
    with pytest.raises(UserError, match=message):
        list(Source(root / "manifest.csv").samples())


@pytest.mark.parametrize(
    ("image", "extra"),
    [
        ("a/b.png", ""),
        ("a/../b.png", ""),
        ("{root}/b.png", ""),
        ("{outside}/b.png", "{outside}"),
        ("../outside/b.png", "{outside}"),
        ("s3://bucket/b.png", "s3://bucket"),
    ],
)
def test_the_root_and_what_is_listed_besides_are_read(
    tmp_path: Path, image: str, extra: str
) -> None:
    names = {"root": tmp_path / "root", "outside": tmp_path / "outside"}
    root = write(names["root"], image.format(**names))
    extra = extra.format(**names)
    trusted = Trusted((Path(extra),)) if extra else ROOT_ALONE
    assert len(roots.read("manifest", root, trusted=trusted).train) == 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("a/b.png", "a/b.png"),
        ("a..b/c...png", "a..b/c...png"),
        ("a/../b.png", "b.png"),
        ("../outside/b.png", "{outside}/b.png"),
        ("../root/a/b.png", "{root}/a/b.png"),
        ("{outside}/../outside/b.png", "{outside}/b.png"),
        ("s3://bucket/a/../b.png", "s3://bucket/b.png"),
    ],
)
def test_a_gallery_names_the_file_that_was_checked(
    tmp_path: Path, image: str, expected: str
) -> None:
    """With no "..", which would lead elsewhere where a folder before it is a link."""
    names = {"root": tmp_path / "root", "outside": tmp_path / "outside"}
    root = write(names["root"], image.format(**names))
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    (root / "a").symlink_to(tmp_path / "elsewhere" / "inner")
    trusted = Trusted((names["outside"], tmp_path / "elsewhere", Path("s3://bucket")))
    (sample,) = Source(root / "manifest.csv", trusted=trusted).samples()
    assert sample.image == expected.format(**names)


def test_a_bucket_is_no_prefix_of_another_name(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "s3://bucket-of-others/b.png")
    with pytest.raises(UserError, match="lies outside"):
        roots.read("manifest", root, trusted=Trusted((Path("s3://bucket"),)))
    root = write(tmp_path / "root", "s3://bucket/../others/b.png")
    with pytest.raises(UserError, match="lies outside"):
        roots.read("manifest", root, trusted=Trusted((Path("s3://bucket"),)))


def test_http_comes_by_a_setting(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "http://example.org/b.png")
    assert len(roots.read("manifest", root, trusted=Trusted(allow_http=True)).train) == 1
