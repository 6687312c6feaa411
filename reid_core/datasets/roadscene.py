"""RoadScene's aligned visible and thermal images as a retrieval benchmark of real pixels.

An identity is a *place*: a tall patch of one scene with texture in both spectra. Cameras 1, 2, 4
and 5 see its visible pixels, 3 and 6 its thermal ones, in short tracks of frames that share
crop and light; the tree has SYSU-MM01's layout. Places, not identities: what can be learned is
how two spectra show one thing. No scene lies in two splits, nor do neighbors of a drive.

Data: hanna-xu/RoadScene, 221 pairs, folders crop_HR_visible and cropinfrared.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from reid_core.datasets import recipes
from reid_core.datasets.counts import EXPECTED

VISIBLE, INFRARED = (1, 2, 4, 5), (3, 6)
JITTER = {"easy": 0.35, "default": 0.7, "hard": 1.0}
"""Shift, scale and rotation of a track; 1 is +-12 %, 0.9 to 1.15, +-6 degrees."""
DEGRADE = {"easy": 0.6, "default": 1.0, "hard": 1.3}
"""Strength of color cast, exposure, blur and noise."""

_WORLD = 1  # raise it when what is cut or drawn changes
_RECIPE, _SPLITS = "roadscene.json", ("train", "val", "test")
_FOLDERS = {"visible": "crop_HR_visible", "infrared": "cropinfrared"}
_WIDTH, _HEIGHT = 64, 128  # of a patch in thermal pixels, and of the images that are written
_MARGIN, _STEP = 8, 16
_TRACKS = {**dict.fromkeys(VISIBLE, (2, 2)), **dict.fromkeys(INFRARED, (2, 3))}
_NEIGHBORS = 8  # scenes in a row that share a split
_MIN_FRAMES_APART = 10
_TEST_SHARE = 0.34
_MIN_TEXTURE = 4.0  # gray levels per pixel


@dataclass(frozen=True)
class _Camera:
    gain: np.ndarray
    gamma: float
    blur: float
    noise: float
    quality: int


def write(
    source: Path, out: Path, *, seed: int = 0, difficulty: str = "default", per_scene: int = 3
) -> dict[str, int]:
    """Write the places as a tree that `reid_core.datasets.sysu` reads.

    A folder that already holds exactly this tree is left as it is; one whose writing was
    interrupted is completed, and is no data set before.

    Args:
        source: a checkout of RoadScene, or the two folders of it that are needed.
        out: folder of the tree; it may exist if it is empty.
        seed: of cameras, splits, places and frames: same seed, same files.
        difficulty: a key of `JITTER`.
        per_scene: most places of a scene; their patches do not overlap.

    Returns:
        Number of identities in train, val and test.

    Raises:
        ValueError: an unknown difficulty, no such folders, an image without its partner, or a
            folder with other content.
    """
    if difficulty not in JITTER:
        raise ValueError(f"difficulty {difficulty!r}: choose one of {', '.join(JITTER)}")
    scenes = _scenes(source)
    recipe = {
        "seed": seed,
        "difficulty": difficulty,
        "per_scene": per_scene,
        "scenes": _fingerprint(source, scenes),
        "world": _WORLD,
    }
    if recipes.is_complete(out, recipe, _RECIPE, called="places of RoadScene"):
        expected = json.loads((out / EXPECTED).read_text())
        return {name: expected.get(name, _expected(0))["visible"]["ids"] for name in _SPLITS}
    recipes.begin(out, recipe, _RECIPE)
    pids = _write_images(source, scenes, out, seed, difficulty, per_scene)
    (out / "exp").mkdir(exist_ok=True)
    for name, numbers in pids.items():
        (out / "exp" / f"{name}_id.txt").write_text(",".join(map(str, numbers)))
    counts = {name: _expected(len(numbers)) for name, numbers in pids.items() if numbers}
    recipes.finish(out, counts)
    return {name: len(numbers) for name, numbers in pids.items()}


def _write_images(
    source: Path, scenes: list[str], out: Path, seed: int, difficulty: str, per_scene: int
) -> dict[str, list[int]]:
    """The images of all places; which places are in a split."""
    rng = np.random.default_rng(seed)
    strength, jitter = DEGRADE[difficulty], JITTER[difficulty]
    cameras = {number: _camera(number, rng, strength) for number in (*VISIBLE, *INFRARED)}
    split_of = _split(scenes, rng)
    pids: dict[str, list[int]] = {name: [] for name in _SPLITS}
    for scene in scenes:
        images = {name: Image.open(source / f / scene) for name, f in _FOLDERS.items()}
        thermal, seen = images["infrared"].convert("L"), images["visible"].convert("RGB")
        for corner in _places(seen, thermal, per_scene, rng):
            pid = 1 + sum(map(len, pids.values()))
            pids[split_of[scene]].append(pid)
            for number, camera in cameras.items():
                folder = out / f"cam{number}" / f"{pid:04d}"
                folder.mkdir(parents=True, exist_ok=True)
                shown = seen if number in VISIBLE else thermal
                factor = (shown.width / thermal.width, shown.height / thermal.height)
                frames = _frames(_TRACKS[number], jitter, strength, rng)
                for place, (view, gain) in enumerate(frames, 1):
                    pixels = _cut(shown, factor, corner, view)
                    image = _shoot(pixels, camera, gain, rng)
                    image.save(folder / f"{place:04d}.jpg", quality=camera.quality)
    return pids


def _fingerprint(source: Path, scenes: list[str]) -> str:
    """Of the images that the places are cut from: their names and sizes."""
    files = [source / folder / scene for folder in _FOLDERS.values() for scene in scenes]
    listed = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _expected(num_places: int) -> dict[str, dict[str, int]]:
    """What the check of a data set shall count in a split."""
    return {
        modality: {
            "ids": num_places,
            "cameras": len(cameras),
            "images": num_places * sum(math.prod(_TRACKS[number]) for number in cameras),
        }
        for modality, cameras in (("visible", VISIBLE), ("infrared", INFRARED))
    }


def _scenes(source: Path) -> list[str]:
    """Names of scenes that are at least ten frames of their drive apart."""
    for folder in _FOLDERS.values():
        if not (source / folder).is_dir():
            raise ValueError(f"{source / folder} is missing: give a checkout of RoadScene")
    names = sorted((path.name for path in (source / _FOLDERS["infrared"]).glob("*.jpg")), key=_time)
    remaining: list[str] = []
    for name in names:
        if not (source / _FOLDERS["visible"] / name).is_file():
            raise ValueError(f"{name} is missing in {source / _FOLDERS['visible']}")
        drive, frame = _time(name)
        if (
            remaining
            and _time(remaining[-1])[0] == drive
            and frame - _time(remaining[-1])[1] < _MIN_FRAMES_APART
        ):
            continue
        remaining.append(name)
    if not remaining:
        raise ValueError(f"{source / _FOLDERS['infrared']} holds no images FLIR_*.jpg")
    return remaining


def _time(name: str) -> tuple[str, int]:
    """Drive and frame that a file name says."""
    parts = re.fullmatch(r"FLIR_(video_)?(\d+)\.jpg", name)
    if parts is None:
        raise ValueError(f"{name} is no name of RoadScene, such as FLIR_00006.jpg")
    return parts[1] or "", int(parts[2])


def _split(scenes: list[str], rng: np.random.Generator) -> Mapping[str, str]:
    """Split of every scene; runs of neighbors stay together."""
    runs = [scenes[i : i + _NEIGHBORS] for i in range(0, len(scenes), _NEIGHBORS)]
    num_test = round(_TEST_SHARE * len(runs))
    split_of: dict[str, str] = {}
    for place, run in enumerate(rng.permutation(len(runs))):
        name = "test" if place < num_test else "val" if place == num_test else "train"
        split_of |= dict.fromkeys(runs[run], name)
    return split_of


def _places(
    visible: Image.Image, thermal: Image.Image, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Top left corners of patches that do not overlap, those with most texture first.

    What counts is the poorer half in the poorer spectrum: sky above or road below is no place.
    """
    small = visible.convert("L").resize(thermal.size, Image.Resampling.LANCZOS)
    textures = [_texture(np.asarray(gray, np.float32)) for gray in (small, thermal)]
    height, width = textures[0].shape
    half = _HEIGHT // 2
    worthy = []
    for y in range(_MARGIN, height - _HEIGHT - _MARGIN + 1, _STEP):
        for x in range(_MARGIN, width - _WIDTH - _MARGIN + 1, _STEP):
            patches = [texture[y : y + _HEIGHT, x : x + _WIDTH] for texture in textures]
            worth = min(min(p[:half].mean(), p[half:].mean()) for p in patches)
            if worth >= _MIN_TEXTURE:
                worthy.append((worth + rng.uniform(0, 0.2), x, y))
    chosen: list[tuple[int, int]] = []
    for _, x, y in sorted(worthy, reverse=True):
        if len(chosen) < count and all(
            abs(x - u) >= _WIDTH or abs(y - v) >= _HEIGHT for u, v in chosen
        ):
            chosen.append((x, y))
    return chosen


def _texture(gray: np.ndarray) -> np.ndarray:
    steepness: np.ndarray = np.hypot(*reversed(np.gradient(gray)))
    return steepness


def _camera(number: int, rng: np.random.Generator, strength: float) -> _Camera:
    if number in VISIBLE:
        return _Camera(
            gain=1 + strength * rng.uniform(-0.3, 0.3, 3),
            gamma=float(np.exp(strength * rng.uniform(-0.35, 0.35))),
            blur=strength * rng.uniform(0, 1.0),
            noise=strength * rng.uniform(0.01, 0.04),
            quality=int(rng.integers(70, 93)),
        )
    return _Camera(
        gain=np.full(3, 1 + strength * rng.uniform(-0.2, 0.2)),
        gamma=float(np.exp(strength * rng.uniform(-0.3, 0.3))),
        blur=strength * rng.uniform(0.3, 1.2),
        noise=strength * rng.uniform(0.02, 0.06),
        quality=int(rng.integers(70, 93)),
    )


def _frames(
    tracks: tuple[int, int], jitter: float, strength: float, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, float]]:
    """(shift x, shift y, scale, radians) of each frame, and its exposure."""
    for _ in range(tracks[0]):
        shift = rng.uniform(-0.12, 0.12, 2)
        scale = np.exp(rng.uniform(np.log(0.9), np.log(1.15))) ** jitter
        turn = np.radians(rng.uniform(-6, 6)) * jitter
        view = np.array([*(shift * jitter), scale, turn])
        exposure = float(np.exp(strength * rng.normal(0, 0.12)))
        for _ in range(tracks[1]):
            shift, scale = rng.normal(0, 0.012, 2), rng.normal(0, 0.012)
            tremble = np.array([*shift, scale, np.radians(rng.normal(0, 0.6))])
            yield view + tremble, exposure * float(np.exp(rng.normal(0, 0.03)))


def _cut(
    image: Image.Image, factor: tuple[float, float], corner: tuple[int, int], view: np.ndarray
) -> np.ndarray:
    """The patch as a view sees it, resampled from the image itself, float32 in 0 to 1."""
    right, down, scale, angle = view
    center = np.array(
        [corner[0] + _WIDTH / 2 + right * _WIDTH, corner[1] + _HEIGHT / 2 + down * _HEIGHT]
    )
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    turn = np.array([[cosine, -sine], [sine, cosine]])
    start = center - turn @ np.array([_WIDTH / 2, _HEIGHT / 2])
    matrix = np.column_stack([turn, start]) * np.array(factor)[:, None]
    cut = image.transform(
        (_WIDTH, _HEIGHT),
        Image.Transform.AFFINE,
        matrix.ravel().tolist(),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(cut, np.float32) / 255


def _shoot(
    pixels: np.ndarray, camera: _Camera, gain: float, rng: np.random.Generator
) -> Image.Image:
    """What a camera makes of the patch: color cast, exposure, blur, noise."""
    channels = 3 if pixels.ndim == 3 else 1
    noise = rng.normal(0, camera.noise, (_HEIGHT, _WIDTH, channels))
    if channels == 1:
        pixels = pixels[..., None].repeat(3, axis=2)
    lit = np.clip(pixels, 0, 1) ** camera.gamma * camera.gain * gain
    clear = Image.fromarray((lit.clip(0, 1) * 255).astype(np.uint8))
    blurred = clear.filter(ImageFilter.GaussianBlur(camera.blur))
    noisy = np.asarray(blurred, np.float32) / 255 + noise
    return Image.fromarray((noisy.clip(0, 1) * 255).astype(np.uint8))
