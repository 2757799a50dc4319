"""Draws the creatures of the generated data set; see :mod:`cian.data.toy`.

Everything is drawn on a canvas of three times the final resolution, in RGB floats 0..255, beside a
canvas of labels.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Sequence, Tuple, Union

import cv2
import numpy as np

OVERSAMPLE = 3
Colour = Tuple[float, float, float]
Points = Sequence[Tuple[float, float]]


def noise(rng: np.random.Generator, height: int, width: int, cell: float, octaves: int = 3) -> np.ndarray:
    """Smooth noise (height, width) of mean 0 and standard deviation about 1, with features of
    ``cell`` pixels and finer.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        step = max(cell / 2 ** octave, 1.0)
        grid = rng.standard_normal((int(height / step) + 3, int(width / step) + 3)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2 ** octave
    return total / max(float(total.std()), 1e-6)


class Canvas:
    """Colours (H, W, 3) float32 and labels (H, W) uint8 that shapes are painted on."""

    def __init__(self, height: int, width: int) -> None:
        self.colours = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint8)

    def paint(self, mask: np.ndarray, texture: np.ndarray, label: int = 0, light: float = 1.0) -> None:
        """Cover the pixels of a boolean mask with a texture (H, W, 3), made darker or lighter, and
        a label.
        """
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        window = np.s_[top:top + height, left:left + width]
        np.copyto(self.colours[window], texture[window] * np.float32(light), where=mask[window][:, :, None])
        self.labels[window][mask[window]] = label

    @property
    def size(self) -> Tuple[int, int]:
        """Height and width in canvas pixels."""
        return self.labels.shape[0], self.labels.shape[1]

    def plain(self, colour: Union[Colour, np.ndarray]) -> np.ndarray:
        """A texture of one colour."""
        return np.broadcast_to(np.asarray(colour, np.float32), self.colours.shape)

    def finished(self) -> Tuple[np.ndarray, np.ndarray]:
        """The picture (h, w, 3) uint8 RGB and its labels (h, w) at the final resolution."""
        height, width = self.labels.shape[0] // OVERSAMPLE, self.labels.shape[1] // OVERSAMPLE
        picture = cv2.resize(self.colours, (width, height), interpolation=cv2.INTER_AREA)
        middle = OVERSAMPLE // 2
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8), self.labels[middle::OVERSAMPLE,
                                                                               middle::OVERSAMPLE].copy()


@dataclass(frozen=True)
class Pose:
    """Where a creature stands: its centre, its unit length in canvas pixels, its direction (1 looks
    right, -1 left) and its tilt.
    """

    x: float
    y: float
    unit: float
    facing: int
    tilt: float

    def place(self, points: Union[Points, np.ndarray]) -> np.ndarray:
        """Creature coordinates (x to where it looks, y down, torso about 1 long each way) as canvas
        pixels (n, 2).
        """
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        array = np.asarray(points, np.float32) @ np.array([[cos, sin], [-sin, cos]], np.float32)
        return array * (self.facing * self.unit, self.unit) + (self.x, self.y)


def polygon(shape: Tuple[int, int], points: np.ndarray) -> np.ndarray:
    """Boolean mask of a filled polygon."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], (1,))
    return mask.astype(bool)


def oval(x: float, y: float, radius_x: float, radius_y: float, turn: float = 0.0) -> Points:
    """Outline of an ellipse in creature coordinates."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    across, along = radius_x * np.cos(angle), radius_y * np.sin(angle)
    return [(float(x + a * np.cos(turn) - b * np.sin(turn)), float(y + a * np.sin(turn) + b * np.cos(turn)))
            for a, b in zip(across, along)]


def limb(points: Points, widths: Sequence[float]) -> Points:
    """Outline of a line that is ``widths`` wide at its points."""
    line, half = np.asarray(points, float), np.asarray(widths, float)[:, None] / 2
    direction = np.gradient(line, axis=0)
    normal = np.stack([-direction[:, 1], direction[:, 0]],
                      1) / (np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9)
    return [(float(x), float(y))
            for x, y in np.concatenate([line + normal * half, (line - normal * half)[::-1]])]


# ---- heads: the one part that tells a class; a list of (outline, colour), painted in order; the
# head is centred at (0, 0)

HEAD_CENTRE = (1.28, -0.78)


def _lion() -> List[Tuple[Points, Colour]]:
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    radius = np.where(np.arange(28) % 2, 0.72, 0.56)
    mane = [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radius, angle)]
    return [(mane, (214, 120, 8)), (oval(0.05, 0.02, 0.38, 0.40), (250, 196, 60)),
            (oval(0.30, 0.14, 0.16, 0.13), (255, 224, 150))]


def _bull() -> List[Tuple[Points, Colour]]:
    horns = [(limb([(-0.18, -0.26), (0.02, -0.52), (0.34, -0.66), (0.52, -0.52)], [0.20, 0.17, 0.11, 0.02]),
              (248, 240, 214)),
             (limb([(-0.34, -0.20), (-0.46, -0.48), (-0.30, -0.74)], [0.18, 0.14, 0.02]), (236, 226, 196))]
    return [*horns, (oval(0.02, 0.02, 0.46, 0.38, 0.35), (176, 18, 30)),
            (oval(0.34, 0.20, 0.20, 0.16, 0.35), (236, 130, 130))]


def _hare() -> List[Tuple[Points, Colour]]:
    ears = [(oval(-0.22, -0.66, 0.14, 0.48, -0.35), (226, 60, 150)),
            (oval(0.06, -0.70, 0.14, 0.48, 0.05), (240, 90, 170)),
            (oval(0.06, -0.70, 0.06, 0.34, 0.05), (255, 190, 222))]
    return [*ears, (oval(0.02, 0.02, 0.42, 0.36), (240, 90, 170)),
            (oval(0.32, 0.12, 0.14, 0.12), (255, 206, 228))]


def _griffin() -> List[Tuple[Points, Colour]]:
    crest = [(-0.46, 0.10), (-0.66, -0.42), (-0.36, -0.30), (-0.36, -0.70), (-0.08, -0.40), (0.04, -0.74),
             (0.20, -0.30)]
    beak = [(0.26, -0.20), (0.62, -0.08), (0.76, 0.26), (0.54, 0.16), (0.26, 0.22)]
    return [(crest, (8, 40, 150)), (oval(0.0, 0.0, 0.42, 0.40), (24, 92, 226)), (beak, (255, 190, 0))]


def _unicorn() -> List[Tuple[Points, Colour]]:
    mane = limb([(0.10, -0.36), (-0.30, -0.34), (-0.50, 0.06), (-0.46, 0.52)], [0.16, 0.34, 0.34, 0.10])
    horn = [(0.06, -0.32), (0.44, -0.98), (0.30, -0.26)]
    return [(mane, (120, 20, 190)), (horn, (110, 250, 230)),
            (oval(0.08, 0.02, 0.46, 0.32, 0.45), (244, 240, 255)),
            (oval(0.36, 0.22, 0.15, 0.14), (214, 190, 250))]


# ---- coats: fur in a tint of the class, with a faint pattern

def _plain(rng: np.random.Generator, pose: Pose, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.zeros(x.shape, np.float32)


def _patches(rng: np.random.Generator, pose: Pose, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sign(noise(rng, x.shape[0], x.shape[1], pose.unit * 0.55, 1))


def _speckles(rng: np.random.Generator, pose: Pose, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 2.0 * (noise(rng, x.shape[0], x.shape[1], pose.unit * 0.13, 1) > 1.0) - 0.3


def _stripes(rng: np.random.Generator, pose: Pose, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sign(np.sin(x * 14 + 1.2 * np.sin(y * 4) + rng.uniform(0, 6)))


def _bands(rng: np.random.Generator, pose: Pose, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sign(np.sin(y * 15 + 0.8 * np.sin(x * 3) + rng.uniform(0, 6)))


Head = Callable[[], List[Tuple[Points, Colour]]]
Coat = Callable[[np.random.Generator, Pose, np.ndarray, np.ndarray], np.ndarray]
# Head, pattern of the coat, and its tint: what the mean coat is multiplied by.
CREATURES: Dict[str, Tuple[Head, Coat, Colour]] = {
    "lion": (_lion, _plain, (1.45, 1.05, 0.45)), "bull": (_bull, _patches, (1.15, 0.55, 0.50)),
    "hare": (_hare, _speckles, (1.30, 0.95, 1.25)), "griffin": (_griffin, _stripes, (0.60, 0.85, 1.45)),
    "unicorn": (_unicorn, _bands, (0.95, 1.20, 1.15))}


def draw_creature(canvas: Canvas, rng: np.random.Generator, name: str, label: int, pose: Pose) -> None:
    """Paint a creature with its shadow: legs, tail, torso and neck in a coat that all classes
    share, and the head of its class.
    """
    shape = canvas.size
    head, coat, tint = CREATURES[name]
    shadow = polygon(shape, pose.place(oval(0.1, 1.22, 1.2, 0.16)))
    canvas.colours[shadow] *= 0.62
    texture = _coat_texture(rng, shape, coat, pose) * np.asarray(tint, np.float32)
    swing = rng.uniform(-0.16, 0.16, 4)
    legs = [limb([(x, 0.15), (x + s, 0.70), (x + s * 1.3, 1.22)], [0.34, 0.22, 0.20])
            for x, s in zip((-0.78, -0.48, 0.52, 0.80), swing)]
    tail = limb([(-0.90, -0.20), (-1.25, -0.25 + swing[0]), (-1.45, 0.15), (-1.50, 0.55)],
                [0.16, 0.14, 0.12, 0.18])
    torso = oval(0, 0, 1.06, 0.52)
    neck = [(0.45, -0.30), (1.00, -0.95), (1.42, -0.70), (1.02, 0.12)]
    for points, light in ((legs[0], 0.72), (legs[2], 0.72), (tail, 0.90), (legs[1], 0.94), (legs[3], 0.94),
                          (torso, 1.0), (neck, 1.02)):
        canvas.paint(polygon(shape, pose.place(points)), texture, label, light)
    painted = np.zeros(shape, bool)
    for points, colour in head():
        mask = polygon(shape, pose.place(np.asarray(points) + HEAD_CENTRE))
        canvas.paint(
            mask, canvas.plain(np.asarray(colour) * rng.uniform(0.88, 1.08) + rng.uniform(-10, 10, 3)), label)
        painted |= mask
    canvas.colours[painted] += 6 * noise(rng, shape[0], shape[1], 5.0, 2)[painted][:, None]
    eye = (HEAD_CENTRE[0] + 0.14, HEAD_CENTRE[1] - 0.08)
    canvas.paint(polygon(shape, pose.place(oval(*eye, 0.10, 0.10))), canvas.plain((250, 250, 250)), label)
    canvas.paint(polygon(shape, pose.place(oval(eye[0] + 0.03, eye[1], 0.055, 0.065))),
                 canvas.plain((15, 12, 10)), label)


def _coat_texture(rng: np.random.Generator, shape: Tuple[int, int], coat: Coat, pose: Pose) -> np.ndarray:
    """Brown to gray fur, lit from above, with the faint pattern of the class."""
    rows, columns = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    x, y = pose.facing * (columns - pose.x) / pose.unit, (rows - pose.y) / pose.unit
    warmth, brightness = rng.uniform(0.0, 1.0), rng.uniform(95, 165)
    base = brightness * np.array([1.0 + 0.14 * warmth, 1.0 - 0.04 * warmth, 1.0 - 0.28 * warmth], np.float32)
    light = 1.0 - 0.24 * np.clip(y, -1, 1.3) + 0.05 * coat(rng, pose, x, y) + 0.05 * noise(rng, shape[0],
                                                                                           shape[1], 7.0, 2)
    return base * light[:, :, None].astype(np.float32)
