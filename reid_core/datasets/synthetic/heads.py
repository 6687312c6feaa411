"""Heads: eight kinds of hair in every view, in body units (see ``drawing``)."""

from __future__ import annotations

import math

import numpy as np

from reid_core.datasets.synthetic.drawing import NORMAL, Canvas, Material, Point
from reid_core.datasets.synthetic.identities import Identity


def draw_hair_behind(canvas: Canvas, identity: Identity) -> None:
    """Hair that a front view shows on both sides of the neck; drawn before the body."""
    if identity.hair == "long":
        canvas.polygon(
            [(-0.052, 0.05), (0.052, 0.05), (0.085, 0.26), (-0.085, 0.26)], Material.HAIR
        )
    elif identity.hair == "bob":
        canvas.polygon(
            [(-0.054, 0.05), (0.054, 0.05), (0.068, 0.145), (-0.068, 0.145)], Material.HAIR
        )


def draw_head(canvas: Canvas, identity: Identity, *, back: bool) -> None:
    """A head from the front or from behind."""
    style, hair = identity.hair, Material.HAIR
    if style == "curly":
        canvas.disc((0, 0.072), (0.078, 0.078), hair)
    canvas.disc((0, 0.078), (0.047, 0.063), Material.SKIN)
    if back:
        _head_from_behind(canvas, identity)
        return
    if style not in ("bald", "cap"):
        fringe = 0.052 if style in ("bob", "long", "curly") else 0.043
        _hair_cap(canvas, (-0.053, 0.053), fringe)
    if style == "bun":
        canvas.disc((0, 0.0), (0.028, 0.024), hair)
    if style == "cap":
        _hair_cap(canvas, (-0.054, 0.054), 0.05, Material.HAT)
        canvas.box((-0.06, 0.06), (0.046, 0.058), Material.HAT, NORMAL - 2)
    canvas.line((-0.02, 0.078), (0.02, 0.078), Material.SKIN, 1, pixels=1)
    canvas.line((-0.012, 0.112), (0.012, 0.112), Material.SKIN, 2, pixels=1)


def draw_head_from_side(canvas: Canvas, identity: Identity) -> None:
    """A head that looks towards +x."""
    style, hair = identity.hair, Material.HAIR
    if style == "long":
        canvas.polygon([(-0.05, 0.05), (0.0, 0.05), (-0.005, 0.2), (-0.07, 0.27)], hair)
    elif style == "bob":
        canvas.polygon([(-0.055, 0.05), (0.01, 0.05), (0.012, 0.14), (-0.065, 0.15)], hair)
    elif style == "curly":
        canvas.disc((-0.008, 0.07), (0.076, 0.077), hair)
    elif style == "ponytail":
        canvas.polygon([(-0.04, 0.035), (-0.03, 0.07), (-0.085, 0.22), (-0.1, 0.19)], hair)
    elif style == "bun":
        canvas.disc((-0.05, 0.015), (0.028, 0.026), hair)
    canvas.disc((0.01, 0.078), (0.047, 0.063), Material.SKIN)
    canvas.polygon([(0.05, 0.07), (0.07, 0.092), (0.05, 0.097)], Material.SKIN)
    if style == "cap":
        _hair_cap(canvas, (-0.046, 0.058), 0.052, Material.HAT)
        canvas.box((0.045, 0.1), (0.044, 0.055), Material.HAT, NORMAL - 2)
    elif style != "bald":
        _hair_cap(canvas, (-0.046, 0.054), 0.045)
        canvas.disc((-0.02, 0.07), (0.03, 0.05), hair)


def _head_from_behind(canvas: Canvas, identity: Identity) -> None:
    style, hair = identity.hair, Material.HAIR
    if style == "bald":
        return
    if style == "curly":
        canvas.disc((0, 0.072), (0.078, 0.078), hair)
        return
    canvas.disc((0, 0.066), (0.053, 0.062), hair)
    if style == "long":
        canvas.polygon([(-0.055, 0.06), (0.055, 0.06), (0.062, 0.27), (-0.062, 0.27)], hair)
    elif style == "bob":
        canvas.polygon([(-0.056, 0.05), (0.056, 0.05), (0.066, 0.15), (-0.066, 0.15)], hair)
    elif style == "ponytail":
        canvas.polygon([(-0.018, 0.05), (0.018, 0.05), (0.026, 0.24), (-0.02, 0.25)], hair, 3)
    elif style == "bun":
        canvas.disc((0, 0.005), (0.03, 0.026), hair, NORMAL - 2)
    elif style == "cap":
        _hair_cap(canvas, (-0.055, 0.055), 0.065, Material.HAT)


def _hair_cap(canvas: Canvas, x: Point, y: float, material: Material = Material.HAIR) -> None:
    """Hair (or a hat) on the crown, from x[0] to x[1] and down to y."""
    middle, half = 0.5 * (x[0] + x[1]), 0.5 * (x[1] - x[0])
    arc = [
        (middle + half * math.cos(t), y - (y - 0.004) * math.sin(t))
        for t in np.linspace(0.0, math.pi, 9)
    ]
    canvas.polygon(arc, material)
