"""Where the real data sets keep their images and lists: a small table for each.

A table is filled with a `World`, which knows who is in which split and what was filmed, but
nothing about files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reid_core.datasets.synthetic.cameras import SYSU_CAMERAS, Camera
from reid_core.datasets.synthetic.identities import Identity
from reid_core.datasets.synthetic.scenes import PLACES
from reid_core.datasets.synthetic.sentences import write_sentence
from reid_core.types import Modality

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED
Splits = dict[str, list[int]]
Stream = Callable[..., np.random.Generator]
Divide = Callable[[np.ndarray, Stream, float], Splits]
_HALVES, _WORDS = 4, 5  # namespaces of random streams, after those of `layouts`


@dataclass(frozen=True)
class World:
    """What a data set's lists may tell.

    Attributes:
        splits: ids of each split, ascending.
        stream: key -> a generator of its own.
        identity: id -> who it is.
        views: (id, camera) -> the view of each of its frames.
        cameras: id -> the cameras that have seen it.
    """

    splits: Splits
    stream: Stream
    identity: Callable[[int], Identity]
    views: Callable[[int, Camera], list[str]]
    cameras: Mapping[int, tuple[Camera, ...]]

    @property
    def ids(self) -> list[int]:
        """Everybody, ascending."""
        return sorted(pid for ids in self.splits.values() for pid in ids)


@dataclass(frozen=True)
class Layout:
    """How one data set is laid out.

    Attributes:
        cameras: all of them.
        tracks: per modality, tracks of an identity at a camera and frames in each.
        first_id, max_id: range of ids that the data set's names can hold.
        divide: (ids in the order of the identities, stream, share of them to test) -> splits.
        path: (camera, id, frame from 1, split) -> path relative to the root.
        write_lists: (root, world) writes the lists that name the splits.
        captions: sentences about an image.
        names_cameras: whether a loader can tell the camera.
    """

    cameras: tuple[Camera, ...]
    tracks: dict[Modality, tuple[int, int]]
    first_id: int
    max_id: int
    divide: Divide
    path: Callable[[Camera, int, int, str], str]
    write_lists: Callable[[Path, World], None]
    captions: int = 0
    names_cameras: bool = True

    def frames(self, camera: Camera) -> range:
        """Numbers of the images that a camera takes of an identity."""
        num_tracks, num_frames = self.tracks[camera.modality]
        return range(1, num_tracks * num_frames + 1)


def identities_apart(ids: np.ndarray, stream: Stream, test_share: float) -> Splits:
    """A tenth validates, `test_share` are tested, the others train; at least one each."""
    num_val, num_test = (max(1, round(share * len(ids))) for share in (0.1, test_share))
    parts = np.split(ids, [len(ids) - num_val - num_test, len(ids) - num_test])
    return {
        split: sorted(part.tolist())
        for split, part in zip(("train", "val", "test"), parts, strict=True)
    }


def _without_val(ids: np.ndarray, stream: Stream, test_share: float) -> Splits:
    """Data sets without validation identities train on them."""
    splits = identities_apart(ids, stream, test_share)
    return {"train": sorted(splits["train"] + splits["val"]), "test": splits["test"]}


def _ascending(divide: Divide) -> Divide:
    """Training ids first and without gaps, as the text-image sets number identities."""
    return lambda ids, stream, test_share: divide(np.sort(ids), stream, test_share)


def _half(ids: np.ndarray, stream: Stream, test_share: float, trial: int = 1) -> Splits:
    """RegDB: a random half of the identities trains, another in every trial."""
    mixed = stream(_HALVES, trial).permutation(np.sort(ids))
    middle = (len(ids) + 1) // 2
    return {"train": sorted(mixed[:middle].tolist()), "test": sorted(mixed[middle:].tolist())}


def _sysu_path(camera: Camera, pid: int, frame: int, split: str) -> str:
    return f"cam{camera.number}/{pid:04d}/{frame:04d}.jpg"


def _sysu_lists(root: Path, world: World) -> None:
    (root / "exp").mkdir(exist_ok=True)
    for split, ids in world.splits.items():
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, ids)) + "\n")


def _regdb_path(camera: Camera, pid: int, frame: int, split: str) -> str:
    folder = "Visible" if camera.modality == VISIBLE else "Thermal"
    return f"{folder}/{pid}/{folder[0].lower()}_{frame:05d}_{pid}.bmp"


def _regdb_lists(root: Path, world: World) -> None:
    (root / "idx").mkdir(exist_ok=True)
    layout = LAYOUTS["regdb"]
    for trial in range(1, 11):
        halves = _half(np.array(world.ids), world.stream, 0.5, trial)
        for split, ids in halves.items():
            for camera, name in zip(layout.cameras, ("visible", "thermal"), strict=True):
                lines = [
                    f"{_regdb_path(camera, pid, frame, split)} {label}\n"
                    for label, pid in enumerate(ids)
                    for frame in layout.frames(camera)
                ]
                (root / "idx" / f"{split}_{name}_{trial}.txt").write_text("".join(lines))


def _llcm_path(camera: Camera, pid: int, frame: int, split: str) -> str:
    name = "vis" if camera.modality == VISIBLE else "nir"
    file = f"{pid:04d}_c{camera.number:02d}_s{pid:06d}_f{frame:04d}_{name}.jpg"
    if split == "train":
        return f"{name}/{pid:04d}/{file}"
    return f"test_{name}/cam{camera.number}/{pid:04d}/{file}"


def _llcm_lists(root: Path, world: World) -> None:
    (root / "idx").mkdir(exist_ok=True)
    layout = LAYOUTS["llcm"]
    for name, modality in (("vis", VISIBLE), ("nir", INFRARED)):
        lines = [
            f"{_llcm_path(camera, pid, frame, 'train')} {label}\n"
            for label, pid in enumerate(world.splits["train"])
            for camera in world.cameras[pid]
            if camera.modality == modality
            for frame in layout.frames(camera)
        ]
        (root / "idx" / f"train_{name}.txt").write_text("".join(lines))
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, world.splits["test"])))


def _cuhk_path(camera: Camera, pid: int, frame: int, split: str) -> str:
    folders = ("CUHK01", "CUHK03", "Market", "cam_a", "cam_b", "test_query", "train_query")
    folder = folders[(pid + camera.number) % len(folders)]
    return f"CUHK-PEDES/imgs/{folder}/p{pid}_s{10 * camera.number + frame}.jpg"


def _icfg_path(camera: Camera, pid: int, frame: int, split: str) -> str:
    folder = "train" if pid % 2 else "test"  # MSMT17's split, which is not this data set's
    name = f"{pid:04d}_000_{camera.number:02d}_0303morning_{frame:04d}_0.jpg"
    return f"ICFG-PEDES/imgs/{folder}/{pid:04d}/{name}"


def _rstp_path(camera: Camera, pid: int, frame: int, split: str) -> str:
    return f"RSTPReid/imgs/{pid:04d}_c{camera.number}_{frame:04d}.jpg"


def _annotated(kind: str, list_name: str, path_key: str) -> Callable[[Path, World], None]:
    """The writer of one JSON list with an object per image."""

    def write(root: Path, world: World) -> None:
        entries = [
            {"id": pid, path_key: image.split("/imgs/")[1], "captions": captions, "split": split}
            for split, pid, image, captions in _described(LAYOUTS[kind], world)
        ]
        (root / list_name).write_text(json.dumps(entries))

    return write


def _described(layout: Layout, world: World) -> Iterator[tuple[str, int, str, list[str]]]:
    """(split, id, path, sentences) of every image."""
    for split, ids in world.splits.items():
        for pid in ids:
            identity = world.identity(pid)
            for camera in layout.cameras:
                views = world.views(pid, camera)
                for frame, view in zip(layout.frames(camera), views, strict=True):
                    rng = world.stream(_WORDS, pid, camera.number, frame)
                    said = [write_sentence(identity, view, rng) for _ in range(layout.captions)]
                    yield split, pid, layout.path(camera, pid, frame, split), said


def _relatives(modality: Modality, numbers: tuple[int, ...]) -> tuple[Camera, ...]:
    """More cameras of the world: SYSU's in turn, each at a place and with a tint of its own."""
    parents = [camera for camera in SYSU_CAMERAS if camera.modality == modality]
    places = tuple(PLACES)
    cameras = []
    for number in numbers:
        parent = parents[number % len(parents)]
        tint = tuple(gain * (0.9 + 0.05 * ((number + i) % 4)) for i, gain in enumerate(parent.cast))
        place = places[number % len(places)]
        cameras.append(replace(parent, number=number, place=place, cast=tint))
    return tuple(cameras)


_PAIR = (
    replace(SYSU_CAMERAS[3], number=1),
    replace(SYSU_CAMERAS[2], number=2, place=SYSU_CAMERAS[3].place),
)
_STREET = _relatives(VISIBLE, (1, 2, 3, 4, 5))

LAYOUTS = {
    "sysu": Layout(
        cameras=SYSU_CAMERAS,
        tracks={VISIBLE: (2, 2), INFRARED: (2, 3)},
        first_id=1,
        max_id=9999,
        divide=identities_apart,
        path=_sysu_path,
        write_lists=_sysu_lists,
    ),
    "regdb": Layout(
        cameras=_PAIR,
        tracks={VISIBLE: (2, 5), INFRARED: (2, 5)},
        first_id=1,
        max_id=99_999,
        divide=_half,
        path=_regdb_path,
        write_lists=_regdb_lists,
    ),
    "llcm": Layout(
        cameras=(
            *_relatives(VISIBLE, (1, 2, 3, 4, 5, 6, 7, 8, 9)),
            *_relatives(INFRARED, (1, 2, 4, 5, 6, 7, 8, 9)),
        ),
        tracks={VISIBLE: (1, 2), INFRARED: (1, 2)},
        first_id=1,
        max_id=9999,
        divide=_without_val,
        path=_llcm_path,
        write_lists=_llcm_lists,
    ),
    "cuhk": Layout(
        cameras=_STREET[:4],
        tracks={VISIBLE: (1, 1)},
        first_id=1,
        max_id=99_999,
        divide=_ascending(identities_apart),
        path=_cuhk_path,
        write_lists=_annotated("cuhk", "CUHK-PEDES/reid_raw.json", "file_path"),
        captions=2,
        names_cameras=False,
    ),
    "icfg": Layout(
        cameras=_STREET,
        tracks={VISIBLE: (2, 1)},
        first_id=0,
        max_id=9999,
        divide=_ascending(_without_val),
        path=_icfg_path,
        write_lists=_annotated("icfg", "ICFG-PEDES/ICFG-PEDES.json", "file_path"),
        captions=1,
        names_cameras=False,
    ),
    "rstp": Layout(
        cameras=_STREET,
        tracks={VISIBLE: (1, 1)},
        first_id=0,
        max_id=9999,
        divide=_ascending(identities_apart),
        path=_rstp_path,
        write_lists=_annotated("rstp", "RSTPReid/data_captions.json", "img_path"),
        captions=2,
    ),
}
