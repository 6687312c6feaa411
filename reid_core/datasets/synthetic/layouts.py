"""Writing a world to disk as a tree that the loader of real data reads.

A layout is a small table: its cameras, where a picture goes, and which lists name the splits.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reid_core.datasets.synthetic.cameras import SYSU_CAMERAS, Camera, film
from reid_core.datasets.synthetic.palettes import (
    DIFFICULTIES,
    colour_table,
    reflectance_table,
    reflectances,
)
from reid_core.datasets.synthetic.people import Person, draw_person
from reid_core.types import Modality

WORLD = 4  # raise it when the drawings change: an old tree is then not taken for a new one

# Namespaces of the random streams: the people do not depend on layout, size or difficulty.
_PEOPLE, _IDS, _DYES, _SHOTS = range(4)
_TRACKS = {Modality.VISIBLE: (2, 2), Modality.INFRARED: (2, 3)}  # tracks, frames in each
_JPEG_QUALITY = 92
_EXPECTED, _RECIPE = "expected.json", "synthetic.json"


@dataclass(frozen=True)
class Layout:
    """How one data set is laid out.

    Attributes:
        cameras: all of them.
        max_id: largest person id that the folder names can hold.
        path: (camera number, id, frame from 1) -> path relative to the root.
        write_lists: (root, ids of each split) writes the lists that name the splits.
    """

    cameras: tuple[Camera, ...]
    max_id: int
    path: Callable[[int, int, int], str]
    write_lists: Callable[[Path, dict[str, list[int]]], None]


def _sysu_path(camera: int, pid: int, frame: int) -> str:
    return f"cam{camera}/{pid:04d}/{frame:04d}.jpg"


def _sysu_lists(root: Path, splits: dict[str, list[int]]) -> None:
    (root / "exp").mkdir(exist_ok=True)
    for split, ids in splits.items():
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, ids)) + "\n")


LAYOUTS = {"sysu": Layout(SYSU_CAMERAS, 9999, _sysu_path, _sysu_lists)}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content of a tree; kept beside it in synthetic.json."""

    num_identities: int
    seed: int
    layout: str
    difficulty: str
    height: int
    world: int = WORLD


def write(
    root: str | os.PathLike[str],
    *,
    num_identities: int,
    seed: int,
    layout: str = "sysu",
    difficulty: str = "default",
    height: int = 64,
    workers: int = 1,
) -> None:
    """Writes generated people as a data set, with its counts in ``expected.json``.

    The same arguments (whatever ``workers``) give the same bytes. A root that already holds
    exactly this tree is left as it is; one whose writing was interrupted is completed.

    Args:
        root: folder to create; it may exist if it is empty.
        num_identities: all people; 70 % train, 10 % val, 20 % test, at least one each.
        seed: of everything that is drawn.
        layout: "sysu".
        difficulty: "easy", "default" or "hard", see the package's docstring.
        height: of a picture in pixels, even, at least 32; the width is half of it.
        workers: processes that draw.

    Raises:
        ValueError: unknown layout or difficulty, sizes out of range, or a root with other content.
        OSError: the root cannot be written, or the disk is full.
    """
    recipe = Recipe(num_identities, seed, layout, difficulty, height)
    _check(recipe, workers)
    root = Path(root)
    if _is_complete(root, recipe):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / _RECIPE).write_text(json.dumps(asdict(recipe), indent=1) + "\n")
        _write_pictures(root, recipe, workers)
        splits = _splits(recipe)
        LAYOUTS[layout].write_lists(root, splits)
        # Last, so that its presence says that all the rest is there.
        counts = json.dumps(_expected(recipe, splits), indent=1) + "\n"
        (root / _EXPECTED).write_text(counts)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write the generated data set below {root}: {error.strerror}; "
            "free space or choose another root, then run again to complete it",
        ) from error


def _check(recipe: Recipe, workers: int) -> None:
    if recipe.layout not in LAYOUTS:
        raise ValueError(f"layout {recipe.layout!r} is unknown; valid: {', '.join(LAYOUTS)}")
    if recipe.difficulty not in DIFFICULTIES:
        valid = ", ".join(DIFFICULTIES)
        raise ValueError(f"difficulty {recipe.difficulty!r} is unknown; valid: {valid}")
    largest = LAYOUTS[recipe.layout].max_id
    if not 3 <= recipe.num_identities <= largest:
        raise ValueError(
            f"num_identities={recipe.num_identities} is out of range: three splits need at least "
            f"3 people, and the folder names of {recipe.layout} end at {largest}"
        )
    if recipe.height < 32 or recipe.height % 2:
        raise ValueError(f"height={recipe.height} must be even and at least 32")
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")


def _is_complete(root: Path, recipe: Recipe) -> bool:
    """True if the root holds this very tree, False if it may be written to."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _RECIPE).read_text())
    except (OSError, ValueError):
        found = None
    if found != asdict(recipe):
        held = "something else" if found is None else f"a generated data set of {found}"
        raise ValueError(
            f"{root} exists and holds {held}, not {asdict(recipe)}; choose another root or "
            "remove it"
        )
    return (root / _EXPECTED).exists()


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _ids(recipe: Recipe) -> np.ndarray:
    """(num_identities,) id of each person, a permutation: an id says nothing."""
    return 1 + _generator(recipe.seed, _IDS).permutation(recipe.num_identities)


def _splits(recipe: Recipe) -> dict[str, list[int]]:
    """Ids of each split, ascending."""
    ids = _ids(recipe)
    num_val = max(1, round(0.1 * len(ids)))
    num_test = max(1, round(0.2 * len(ids)))
    parts = np.split(ids, [len(ids) - num_val - num_test, len(ids) - num_test])
    return {
        split: sorted(part.tolist())
        for split, part in zip(("train", "val", "test"), parts, strict=True)
    }


def _expected(recipe: Recipe, splits: dict[str, list[int]]) -> dict[str, dict[str, dict]]:
    cameras = LAYOUTS[recipe.layout].cameras
    counts: dict[str, dict[str, dict]] = {}
    for split, ids in splits.items():
        counts[split] = {}
        for modality, (num_tracks, num_frames) in _TRACKS.items():
            number = sum(camera.modality == modality for camera in cameras)
            images = len(ids) * number * num_tracks * num_frames
            counts[split][modality] = {"ids": len(ids), "cameras": number, "images": images}
    return counts


def _write_pictures(root: Path, recipe: Recipe, workers: int) -> None:
    ids = _ids(recipe)
    for camera in LAYOUTS[recipe.layout].cameras:
        for pid in ids.tolist():
            picture = root / LAYOUTS[recipe.layout].path(camera.number, pid, 1)
            picture.parent.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        _write_people(root, recipe, range(recipe.num_identities))
        return
    # Spawned, not forked: the caller may have threads (torch, Ray) that a fork would break.
    context = multiprocessing.get_context("spawn")
    shares = [range(start, recipe.num_identities, workers) for start in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done in [pool.submit(_write_people, root, recipe, share) for share in shares]:
            done.result()


def _write_people(root: Path, recipe: Recipe, people: Iterable[int]) -> None:
    layout = LAYOUTS[recipe.layout]
    ids = _ids(recipe)
    for index in people:
        person = draw_person(_generator(recipe.seed, _PEOPLE, index))
        for camera in layout.cameras:
            num_tracks, num_frames = _TRACKS[camera.modality]
            pictures = film(
                camera,
                person,
                _table(recipe, index, person, camera),
                height=recipe.height,
                num_tracks=num_tracks,
                num_frames=num_frames,
                rng=_generator(recipe.seed, _SHOTS, index, camera.number),
            )
            for frame, picture in enumerate(pictures, start=1):
                path = root / layout.path(camera.number, int(ids[index]), frame)
                _save(picture, path)


def _table(recipe: Recipe, index: int, person: Person, camera: Camera) -> np.ndarray:
    if camera.modality == Modality.VISIBLE:
        return colour_table(person, occluder=(camera.occluder,) * 3)
    rng = _generator(recipe.seed, _DYES, index)
    values = reflectances(person, DIFFICULTIES[recipe.difficulty], rng)
    return reflectance_table(values, occluder=camera.occluder)


def _save(picture: np.ndarray, path: Path) -> None:
    """JPEG with three channels, as infrared cameras write them too; full chroma resolution."""
    if picture.shape[2] == 1:
        image = Image.fromarray(picture[..., 0]).convert("RGB")
    else:
        image = Image.fromarray(picture)
    # Encoded in memory: a full disk is then reported as such, not as an encoder's error.
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    path.write_bytes(encoded.getvalue())
