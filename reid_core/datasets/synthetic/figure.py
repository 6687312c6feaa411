"""One identity in one pose as material codes: the only place that knows how a body looks.

Widths and joints are in body units (see ``drawing``). From the front and from behind the body is
drawn symmetrically; from the side it faces +x and the canvas mirrors it for the left view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reid_core.datasets.synthetic.drawing import (
    FAR,
    NORMAL,
    Canvas,
    Material,
    Point,
    apply_pattern,
    pattern_mask,
)
from reid_core.datasets.synthetic.heads import draw_hair_behind, draw_head, draw_head_from_side
from reid_core.datasets.synthetic.identities import Identity

# Garment -> (hem y, extra half width): how far down it goes, how loosely it hangs.
_UPPER_CUT = {
    "t-shirt": (0.485, 0.0),
    "shirt": (0.505, 0.004),
    "sweater": (0.475, 0.012),
    "hoodie": (0.5, 0.016),
    "jacket": (0.495, 0.016),
    "coat": (0.7, 0.02),
    "tank top": (0.475, -0.006),
}
# Garment -> half widths at thigh, knee, ankle.
_LEG_CUT = {
    "jeans": (0.05, 0.037, 0.028),
    "trousers": (0.055, 0.047, 0.043),
    "leggings": (0.043, 0.03, 0.02),
}
_BARE_LEG = (0.042, 0.029, 0.018)
_SKIRT_HEM = {"skirt": 0.69, "long skirt": 0.89}
_ARM = 0.024


@dataclass(frozen=True, slots=True)
class Pose:
    """What differs between two images: view, gait phase (radians), and where the body stands.

    ``top`` and ``axis`` are canvas pixels, ``scale`` canvas pixels per body height.
    """

    view: str
    phase: float
    top: float
    axis: float
    scale: float


def draw_figure(identity: Identity, pose: Pose, shape: tuple[int, int]) -> np.ndarray:
    """Draws an identity.

    Args:
        identity: who.
        pose: how and where.
        shape: (height, width) of the canvas.

    Returns:
        (height, width) uint8 codes, 0 where the background shows.
    """
    sign = -1 if pose.view in ("left", "back") else 1
    canvas = Canvas(shape, top=pose.top, axis=pose.axis, scale=pose.scale, sign=sign)
    if pose.view in ("front", "back"):
        _draw_upright(canvas, identity, pose)
    else:
        _draw_side(canvas, identity, pose)
    codes = canvas.codes()
    y, x = canvas.body_grid()
    from_front = pose.view == "front"
    for garment, material in ((identity.upper, Material.UPPER), (identity.lower, Material.LOWER)):
        if garment.pattern != "plain":
            mask = pattern_mask(garment.pattern, y, x, from_front=from_front)
            apply_pattern(codes, mask, material)
    return codes


# --- front and back ---------------------------------------------------------------------------


def _draw_upright(canvas: Canvas, identity: Identity, pose: Pose) -> None:
    back = pose.view == "back"
    swing = math.sin(pose.phase)
    if identity.bag.kind == "suitcase":
        _suitcase(canvas, 0.19 * identity.side)
    if not back:
        draw_hair_behind(canvas, identity)
    for side in (-1, 1):
        lift = 0.035 * max(0.0, side * swing)
        hip, knee = (0.045 * side, 0.47), (0.05 * side, 0.71 - lift)
        _leg(canvas, identity, (hip, knee, (0.052 * side, 0.945 - lift)), NORMAL)
        _foot_upright(canvas, identity, 0.055 * side, 1.0 - lift)
    _skirt(canvas, identity, 0.088 * _hips(identity), 0.0)
    _torso_upright(canvas, identity, back=back)
    for side in (-1, 1):
        reach = 0.02 * side * swing
        shoulder = _shoulders(identity)
        _arm(
            canvas,
            identity,
            (
                (side * (shoulder - 0.018), 0.19),
                (side * (shoulder + 0.012), 0.335 - reach),
                (side * (shoulder + 0.012), 0.465 - 1.5 * reach),
            ),
            NORMAL,
        )
    draw_head(canvas, identity, back=back)
    _bag_upright(canvas, identity, back=back)


def _shoulders(identity: Identity) -> float:
    return (0.122 if identity.gender == "man" else 0.106) * (0.5 + 0.5 * identity.build)


def _hips(identity: Identity) -> float:
    return identity.build * (1.06 if identity.gender == "woman" else 0.96)


def _torso_upright(canvas: Canvas, identity: Identity, *, back: bool) -> None:
    hem, loose = _UPPER_CUT[identity.upper.kind]
    shoulder, waist = _shoulders(identity) + 0.4 * loose, 0.078 * identity.build + loose
    if identity.gender == "man":
        waist += 0.008
    hip = 0.086 * _hips(identity) + loose
    flare = hip + (0.03 if hem > 0.6 else 0.0)
    canvas.limb((0, 0.11), (0, 0.165), (0.022, 0.03), Material.SKIN, NORMAL - 1)
    half = [(0.03, 0.152), (shoulder, 0.182), (shoulder - 0.01, 0.25), (waist, 0.37)]
    half += [(hip, 0.47), (flare, hem)]
    if identity.upper.kind == "tank top":
        half = [(0.045, 0.16), (0.058, 0.16), (0.07, 0.24), *half[3:]]
        canvas.limb((0, 0.175), (0, 0.26), (shoulder - 0.005, shoulder - 0.02), Material.SKIN)
    outline = half + [(-x, y) for x, y in reversed(half)]
    canvas.polygon(outline, Material.UPPER)
    _torso_details(canvas, identity, hem=hem, hip=hip, back=back)


def _torso_details(
    canvas: Canvas, identity: Identity, *, hem: float, hip: float, back: bool
) -> None:
    """What tells one upper garment from another: opening, collar, hood, rib, belt."""
    kind = identity.upper.kind
    if kind == "hoodie":
        canvas.disc((0, 0.16), (0.075, 0.03), Material.UPPER, NORMAL - 2)
        if not back:
            canvas.box((-0.05, 0.05), (0.39, 0.45), Material.UPPER, NORMAL - 2)
    elif kind == "sweater":
        canvas.box((-hip, hip), (hem - 0.025, hem), Material.UPPER, NORMAL - 2)
    elif kind == "coat":
        canvas.box((-hip + 0.01, hip - 0.01), (0.4, 0.425), Material.UPPER, NORMAL - 3)
    if kind == "jacket" and not back:
        opening = [(-0.035, 0.15), (0.035, 0.15), (0.028, hem), (-0.028, hem)]
        canvas.polygon(opening, Material.INNER)
    if kind in ("shirt", "coat") and not back:
        canvas.line((0, 0.17), (0, hem), Material.UPPER, NORMAL - 3, pixels=1)
        canvas.polygon([(-0.04, 0.15), (0.04, 0.15), (0, 0.2)], Material.UPPER, NORMAL + 2)
    elif kind == "t-shirt" and not back:
        canvas.disc((0, 0.155), (0.035, 0.022), Material.SKIN, NORMAL - 1)


def _foot_upright(canvas: Canvas, identity: Identity, x: float, sole: float) -> None:
    kind = identity.shoes.kind
    if kind == "boots":
        canvas.box((x - 0.033, x + 0.033), (sole - 0.15, sole - 0.01), Material.SHOES)
    if kind == "sandals":
        canvas.disc((x, sole - 0.025), (0.032, 0.028), Material.SKIN)
        canvas.box((x - 0.03, x + 0.03), (sole - 0.035, sole - 0.018), Material.SHOES)
    else:
        canvas.disc((x, sole - 0.028), (0.037, 0.032), Material.SHOES)
    if kind == "sneakers":
        canvas.box((x - 0.036, x + 0.036), (sole - 0.016, sole), Material.SOLE)


def _bag_upright(canvas: Canvas, identity: Identity, *, back: bool) -> None:
    kind, side, hip = identity.bag.kind, identity.side, 0.086 * _hips(identity)
    shoulder = _shoulders(identity)
    if kind == "backpack" and back:
        half = 0.085
        canvas.box((-half, half), (0.175, 0.42), Material.BAG)
        canvas.box((-half + 0.02, half - 0.02), (0.31, 0.4), Material.BAG, NORMAL - 2)
    elif kind == "backpack":
        for x in (-0.065, 0.065):
            canvas.limb((x, 0.165), (1.15 * x, 0.33), (0.015, 0.012), Material.BAG)
    elif kind == "shoulder bag":
        canvas.line((-side * 0.07, 0.165), (side * hip, 0.44), Material.BAG, 4, pixels=2)
        x = side * (hip + 0.02)
        canvas.box((x - 0.05, x + 0.05), (0.42, 0.53), Material.BAG)
        canvas.box((x - 0.05, x + 0.05), (0.42, 0.46), Material.BAG, NORMAL + 1)
    elif kind == "handbag":
        x = side * (shoulder + 0.015)
        canvas.polygon([(x - 0.01, 0.48), (x + 0.01, 0.48), (x + 0.04, 0.54), (x - 0.04, 0.54)],
                       Material.BAG, NORMAL - 2)  # fmt: skip
        canvas.box((x - 0.055, x + 0.055), (0.53, 0.63), Material.BAG)


def _suitcase(canvas: Canvas, x: float) -> None:
    canvas.line((0.7 * x, 0.47), (x, 0.68), Material.BAG, 2, pixels=2)
    canvas.box((x - 0.055, x + 0.055), (0.67, 0.96), Material.BAG)
    canvas.line((x - 0.03, 0.74), (x + 0.03, 0.74), Material.BAG, 2, pixels=1)
    canvas.disc((x, 0.975), (0.04, 0.014), Material.SHADOW)


# --- limbs, shared by all views ---------------------------------------------------------------


def _leg(
    canvas: Canvas, identity: Identity, joints: tuple[Point, Point, Point], shade: int
) -> None:
    hip, knee, ankle = joints
    kind, build = identity.lower.kind, 0.4 + 0.6 * identity.build
    material = Material.LOWER if kind in _LEG_CUT else Material.SKIN
    thigh, calf, end = (build * w for w in _LEG_CUT.get(kind, _BARE_LEG))
    canvas.limb(hip, knee, (thigh, calf), material, shade)
    canvas.limb(knee, ankle, (calf, end), material, shade)
    if kind == "shorts":
        low = (0.25 * hip[0] + 0.75 * knee[0], 0.25 * hip[1] + 0.75 * knee[1])
        canvas.limb(hip, low, (0.056 * build, 0.054 * build), Material.LOWER, shade)


def _skirt(canvas: Canvas, identity: Identity, hip: float, stride: float) -> None:
    """A skirt, or the seat of trousers, over the legs."""
    hem = _SKIRT_HEM.get(identity.lower.kind)
    if hem is None:
        canvas.polygon([(-hip, 0.42), (hip, 0.42), (hip, 0.5), (-hip, 0.5)], Material.LOWER)
        return
    spread = hip + (0.035 if hem > 0.8 else 0.045) + 0.5 * stride
    canvas.polygon([(-hip, 0.42), (hip, 0.42), (spread, hem), (-spread, hem)], Material.LOWER)
    for x in (-0.4, 0.1, 0.55):
        canvas.line((x * hip, 0.5), (x * spread, hem), Material.LOWER, NORMAL - 2, pixels=1)


def _arm(
    canvas: Canvas, identity: Identity, joints: tuple[Point, Point, Point], shade: int
) -> None:
    shoulder, elbow, wrist = joints
    wide = _ARM * (0.5 + 0.5 * identity.build)
    loose = max(0.0, _UPPER_CUT[identity.upper.kind][1]) * 0.5
    canvas.limb(shoulder, elbow, (wide, wide * 0.85), Material.SKIN, shade)
    canvas.limb(elbow, wrist, (wide * 0.85, wide * 0.7), Material.SKIN, shade)
    canvas.disc((wrist[0], wrist[1] + 0.015), (0.018, 0.022), Material.SKIN, shade)
    if identity.sleeves == "short":
        low = (0.2 * shoulder[0] + 0.8 * elbow[0], 0.2 * shoulder[1] + 0.8 * elbow[1])
        canvas.limb(shoulder, low, (wide + 0.009, wide + 0.008), Material.UPPER, shade)
    elif identity.sleeves == "long":
        canvas.limb(elbow, wrist, (wide + loose, wide * 0.9 + loose), Material.UPPER, shade)
        canvas.limb(shoulder, elbow, (wide + loose + 0.004, wide + loose), Material.UPPER, shade)


# --- side -------------------------------------------------------------------------------------


def _draw_side(canvas: Canvas, identity: Identity, pose: Pose) -> None:
    swing = math.sin(pose.phase)
    # The identity's own right side (+1) is near in the right view, far in the left view.
    carries_near = identity.side == (1 if pose.view == "right" else -1)
    if identity.bag.kind == "suitcase":
        _suitcase(canvas, -0.2)
    if identity.bag.kind in ("handbag", "shoulder bag") and not carries_near:
        _bag_side(canvas, identity, swing)
    _arm_side(canvas, identity, swing, FAR)
    for shade, phase in ((FAR, pose.phase + math.pi), (NORMAL, pose.phase)):
        _leg_side(canvas, identity, phase, shade)
    _skirt(canvas, identity, 0.068 * _hips(identity), 0.06 * abs(swing))
    if identity.bag.kind == "backpack":
        canvas.box((-0.15, -0.04), (0.175, 0.42), Material.BAG)
        canvas.box((-0.165, -0.12), (0.3, 0.4), Material.BAG, NORMAL - 1)
    _torso_side(canvas, identity)
    draw_head_from_side(canvas, identity)
    _arm_side(canvas, identity, -swing, NORMAL)
    if identity.bag.kind == "backpack":
        canvas.limb((-0.02, 0.165), (0.0, 0.3), (0.012, 0.01), Material.BAG)
    if identity.bag.kind in ("handbag", "shoulder bag") and carries_near:
        _bag_side(canvas, identity, -swing)


def _leg_side(canvas: Canvas, identity: Identity, phase: float, shade: int) -> None:
    angle = 0.4 * math.sin(phase)
    bend = 0.12 + 0.45 * max(0.0, math.cos(phase)) ** 2
    hip = (0.0, 0.47)
    knee = (hip[0] + 0.245 * math.sin(angle), hip[1] + 0.245 * math.cos(angle))
    ankle = (
        knee[0] + 0.235 * math.sin(angle - bend),
        min(knee[1] + 0.235 * math.cos(angle - bend), 0.95),
    )
    _leg(canvas, identity, (hip, knee, ankle), shade)
    x, sole, kind = ankle[0], ankle[1] + 0.05, identity.shoes.kind
    if kind == "boots":
        canvas.limb((knee[0] * 0.35 + x * 0.65, knee[1] * 0.35 + ankle[1] * 0.65), (x, sole - 0.01),
                    (0.032, 0.03), Material.SHOES, shade)  # fmt: skip
    foot = [(x - 0.03, sole - 0.045), (x + 0.02, sole - 0.05), (x + 0.07, sole - 0.02)]
    foot += [(x + 0.072, sole), (x - 0.035, sole)]
    canvas.polygon(foot, Material.SKIN if kind == "sandals" else Material.SHOES, shade)
    if kind == "sandals":
        canvas.box((x - 0.035, x + 0.07), (sole - 0.014, sole), Material.SHOES, shade)
    elif kind == "sneakers":
        canvas.box((x - 0.035, x + 0.072), (sole - 0.016, sole), Material.SOLE, shade)


def _torso_side(canvas: Canvas, identity: Identity) -> None:
    hem, loose = _UPPER_CUT[identity.upper.kind]
    depth = 0.062 * identity.build + 0.6 * loose
    chest = depth + (0.014 if identity.gender == "woman" else 0.002)
    hip = 0.066 * _hips(identity) + 0.6 * loose + (0.03 if hem > 0.6 else 0.0)
    canvas.limb((0.002, 0.11), (-0.008, 0.17), (0.022, 0.028), Material.SKIN, NORMAL - 1)
    outline = [(0.026, 0.158), (0.75 * chest, 0.19), (chest, 0.26), (0.92 * depth, 0.37)]
    outline += [(hip, hem), (-hip, hem), (-0.8 * depth, 0.37), (-depth, 0.24), (-0.035, 0.155)]
    canvas.polygon(outline, Material.UPPER)
    kind = identity.upper.kind
    if kind == "hoodie":
        canvas.disc((-0.045, 0.165), (0.04, 0.032), Material.UPPER, NORMAL - 2)
    elif kind == "sweater":
        canvas.box((-hip, hip), (hem - 0.025, hem), Material.UPPER, NORMAL - 2)
    elif kind == "coat":
        canvas.box((-depth, depth), (0.4, 0.425), Material.UPPER, NORMAL - 3)
    elif kind == "jacket":
        strip = [(0.03, 0.16), (chest, 0.26), (hip, hem), (0.6 * hip, hem), (0.6 * chest, 0.26)]
        canvas.polygon(strip, Material.INNER)


def _arm_side(canvas: Canvas, identity: Identity, swing: float, shade: int) -> None:
    angle = 0.45 * swing
    shoulder = (-0.004, 0.19)
    elbow = (shoulder[0] + 0.15 * math.sin(angle), shoulder[1] + 0.15 * math.cos(angle))
    fore = angle + 0.3
    wrist = (elbow[0] + 0.13 * math.sin(fore), elbow[1] + 0.13 * math.cos(fore))
    _arm(canvas, identity, (shoulder, elbow, wrist), shade)


def _bag_side(canvas: Canvas, identity: Identity, swing: float) -> None:
    if identity.bag.kind == "shoulder bag":
        canvas.line((-0.01, 0.17), (0.0, 0.43), Material.BAG, 4, pixels=2)
        canvas.box((-0.075, 0.065), (0.42, 0.54), Material.BAG)
        canvas.box((-0.075, 0.065), (0.42, 0.46), Material.BAG, NORMAL + 1)
        return
    x = 0.13 * swing + 0.03
    canvas.polygon([(x - 0.01, 0.48), (x + 0.01, 0.48), (x + 0.05, 0.54), (x - 0.05, 0.54)],
                   Material.BAG, NORMAL - 2)  # fmt: skip
    canvas.box((x - 0.07, x + 0.07), (0.53, 0.63), Material.BAG)
