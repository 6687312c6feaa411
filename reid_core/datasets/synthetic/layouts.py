"""Writing a world to disk as a tree that the loader of real data reads."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from reid_core.datasets import recipes
from reid_core.datasets.synthetic.cameras import Camera, film
from reid_core.datasets.synthetic.identities import VIEWS, Identity, draw_identity
from reid_core.datasets.synthetic.palettes import (
    DIFFICULTIES,
    color_table,
    reflectance_table,
    reflectances,
)
from reid_core.datasets.synthetic.trees import LAYOUTS, Splits, World
from reid_core.types import Modality

WORLD = 5  # raise it when the drawings change: an old tree is then not taken for a new one

# Namespaces of the random streams: the identities do not depend on layout, size or difficulty.
_IDENTITIES, _IDS, _DYES, _SHOTS = range(4)
_SIGHT = 6  # after those of `trees`
_JPEG_QUALITY = 92
_MISMATCHED = ("sysu", "llcm")
_RECIPE, _MANIFEST = "synthetic.json", "manifest.csv"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content of a tree; kept beside it in synthetic.json."""

    num_identities: int
    seed: int
    layout: str
    difficulty: str
    height: int
    test_share: float = 0.2
    world: int = WORLD
    mismatch: float = 0.0


def write(
    root: str | os.PathLike[str],
    *,
    num_identities: int,
    seed: int,
    layout: str = "sysu",
    difficulty: str = "default",
    height: int = 96,
    test_share: float = 0.2,
    mismatch: float = 0.0,
    workers: int = 1,
) -> None:
    """Writes generated identities as a data set, with its counts in ``expected.json``.

    Images without captions are also listed in ``manifest.csv``, with the track of each.

    The same arguments (whatever ``workers``) give the same bytes. A root that already holds
    exactly this tree is left as it is; one whose writing was interrupted is completed.

    Args:
        root: folder to create; it may exist if it is empty.
        num_identities: all identities; 10 % validate, `test_share` are tested, the others (70 %)
            train, at least one each. Layouts without validation identities train on them; "regdb"
            has its ten random halves instead.
        seed: of everything that is drawn.
        layout: "sysu", "regdb", "llcm", "cuhk", "icfg" or "rstp".
        difficulty: "easy", "default" or "hard", see the package's docstring.
        height: of an image in pixels, even, at least 32; the width is half of it.
        test_share: of the identities, in (0, 0.8].
        mismatch: share of the training identities that the cameras of one modality alone have seen,
            half of them visible ones; "sysu" and "llcm" only. All others keep their images.
        workers: processes that draw.

    Raises:
        ValueError: unknown layout or difficulty, sizes out of range, or a root with other content.
        OSError: the root cannot be written, or the disk is full.
    """
    recipe = Recipe(num_identities, seed, layout, difficulty, height, test_share, mismatch=mismatch)
    _check(recipe, workers)
    root = Path(root)
    as_written, before = asdict(recipe), {"mismatch": 0.0}  # trees of version 0.2 do not name it
    called = "a generated data set"
    if recipes.is_complete(root, as_written, _RECIPE, called=called, before=before):
        return
    try:
        recipes.begin(root, as_written, _RECIPE)
        _write_images(root, recipe, workers)
        splits = _splits(recipe)
        LAYOUTS[layout].write_lists(root, _world(recipe))
        if not LAYOUTS[layout].captions:
            _write_manifest(root, recipe)
        recipes.finish(root, _expected(recipe, splits))
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
            f"3 identities, and the folder names of {recipe.layout} end at {largest}"
        )
    if not 0 <= recipe.seed < 2**63:
        raise ValueError(f"seed={recipe.seed} must be at least 0 and have at most 63 bits")
    if not 32 <= recipe.height <= 2048 or recipe.height % 2:
        raise ValueError(f"height={recipe.height} must be even, at least 32 and at most 2048")
    if not 0 < recipe.test_share <= 0.8:
        raise ValueError(f"test_share={recipe.test_share} must be above 0 and at most 0.8")
    if not 0 <= recipe.mismatch <= 1:
        raise ValueError(f"mismatch={recipe.mismatch} must be a share between 0 and 1")
    if recipe.mismatch and recipe.layout not in _MISMATCHED:
        raise ValueError(
            f"mismatch={recipe.mismatch}: layout {recipe.layout} has one modality, or tests every "
            f"identity in some trial; choose {' or '.join(_MISMATCHED)}"
        )
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _ids(recipe: Recipe) -> np.ndarray:
    """(num_identities,) id of each identity, a permutation: an id says nothing."""
    order = _generator(recipe.seed, _IDS).permutation(recipe.num_identities)
    return LAYOUTS[recipe.layout].first_id + order


def _splits(recipe: Recipe) -> Splits:
    """Ids of each split, ascending."""
    return LAYOUTS[recipe.layout].divide(
        _ids(recipe), partial(_generator, recipe.seed), recipe.test_share
    )


def _seen_by_one(recipe: Recipe) -> dict[int, Modality]:
    """The training identities that one modality alone has seen, and which one."""
    ids = np.array(_splits(recipe)["train"])
    mixed = _generator(recipe.seed, _SIGHT).permutation(ids)[: round(recipe.mismatch * len(ids))]
    sides = (Modality.VISIBLE, Modality.INFRARED)
    return {pid: sides[place % 2] for place, pid in enumerate(mixed.tolist())}


def _cameras(recipe: Recipe) -> dict[int, tuple[Camera, ...]]:
    """The cameras that have seen each identity."""
    layout, only = LAYOUTS[recipe.layout], _seen_by_one(recipe)
    return {
        pid: tuple(c for c in layout.cameras if only.get(pid, c.modality) == c.modality)
        for pid in _ids(recipe).tolist()
    }


def _world(recipe: Recipe) -> World:
    index = {pid: i for i, pid in enumerate(_ids(recipe).tolist())}

    def views(pid: int, camera: Camera) -> list[str]:
        # `film` begins with this very draw, from the same stream.
        order = _generator(recipe.seed, _SHOTS, index[pid], camera.number).permutation(len(VIEWS))
        num_tracks, num_frames = LAYOUTS[recipe.layout].tracks[camera.modality]
        return [VIEWS[order[t % len(VIEWS)]] for t in range(num_tracks) for _ in range(num_frames)]

    return World(
        splits=_splits(recipe),
        stream=partial(_generator, recipe.seed),
        identity=lambda pid: draw_identity(_generator(recipe.seed, _IDENTITIES, index[pid])),
        views=views,
        cameras=_cameras(recipe),
    )


def _expected(recipe: Recipe, splits: Splits) -> dict[str, dict[str, dict[str, int]]]:
    """Counts per split and modality; captions for text."""
    layout, seen_by = LAYOUTS[recipe.layout], _cameras(recipe)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for split, ids in splits.items():
        counts[split] = {}
        for modality in layout.tracks:
            shots = [(pid, c) for pid in ids for c in seen_by[pid] if c.modality == modality]
            images = sum(len(layout.frames(camera)) for _, camera in shots)
            cameras = {"cameras": len({camera.number for _, camera in shots})}
            known = cameras if layout.names_cameras else {}
            seen = {"ids": len({pid for pid, _ in shots})}
            counts[split][modality] = seen | known | {"images": images}
            if layout.captions:
                captions = images * layout.captions
                counts[split][Modality.TEXT] = {"ids": len(ids), "captions": captions}
    return counts


def _write_images(root: Path, recipe: Recipe, workers: int) -> None:
    for image in _paths(recipe).values():
        (root / image).parent.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        _write_identities(root, recipe, range(recipe.num_identities))
        return
    # Spawned, not forked: the caller may have threads (torch, Ray) that a fork would break.
    context = multiprocessing.get_context("spawn")
    shares = [range(start, recipe.num_identities, workers) for start in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done in [pool.submit(_write_identities, root, recipe, share) for share in shares]:
            done.result()


def _paths(recipe: Recipe) -> dict[tuple[int, Camera, int], str]:
    """Where each image goes, by (id, camera, frame)."""
    layout, seen_by = LAYOUTS[recipe.layout], _cameras(recipe)
    return {
        (pid, camera, frame): layout.path(camera, pid, frame, split)
        for split, ids in _splits(recipe).items()
        for pid in ids
        for camera in seen_by[pid]
        for frame in layout.frames(camera)
    }


def _write_manifest(root: Path, recipe: Recipe) -> None:
    """The same images as rows, with what a tracker knows: which frames are of one track."""
    layout = LAYOUTS[recipe.layout]
    split_of = {pid: split for split, ids in _splits(recipe).items() for pid in ids}
    tracks: dict[tuple[int, int, int], int] = {}
    lines = ["image,modality,pid,camera,tracklet,split"]
    for (pid, camera, frame), path in _paths(recipe).items():
        _, num_frames = layout.tracks[camera.modality]
        track = tracks.setdefault((pid, camera.number, (frame - 1) // num_frames), len(tracks))
        lines.append(f"{path},{camera.modality},{pid},{camera.number},{track},{split_of[pid]}")
    (root / _MANIFEST).write_text("\n".join(lines) + "\n")


def _write_identities(root: Path, recipe: Recipe, identities: Iterable[int]) -> None:
    layout, seen_by = LAYOUTS[recipe.layout], _cameras(recipe)
    ids, paths = _ids(recipe).tolist(), _paths(recipe)
    for index in identities:
        identity = draw_identity(_generator(recipe.seed, _IDENTITIES, index))
        for camera in seen_by[ids[index]]:
            num_tracks, num_frames = layout.tracks[camera.modality]
            images = film(
                camera,
                identity,
                _table(recipe, index, identity, camera),
                height=recipe.height,
                num_tracks=num_tracks,
                num_frames=num_frames,
                rng=_generator(recipe.seed, _SHOTS, index, camera.number),
            )
            for frame, image in enumerate(images, start=1):
                _save(image, root / paths[ids[index], camera, frame])


def _table(recipe: Recipe, index: int, identity: Identity, camera: Camera) -> np.ndarray:
    if camera.modality == Modality.VISIBLE:
        return color_table(identity, occluder=(camera.occluder,) * 3)
    rng = _generator(recipe.seed, _DYES, index)
    values = reflectances(identity, DIFFICULTIES[recipe.difficulty], rng)
    return reflectance_table(values, occluder=camera.occluder)


def _save(pixels: np.ndarray, path: Path) -> None:
    """Three channels, as infrared cameras write them too; JPEGs in full chroma resolution."""
    if pixels.shape[2] == 1:
        image = Image.fromarray(pixels[..., 0]).convert("RGB")
    else:
        image = Image.fromarray(pixels)
    # Encoded in memory: a full disk is then reported as such, not as an encoder's error.
    encoded = io.BytesIO()
    if path.suffix == ".bmp":
        image.save(encoded, format="BMP")
    else:
        image.save(encoded, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    path.write_bytes(encoded.getvalue())
