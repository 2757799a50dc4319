"""Saliency in [0, 1] as a cue for the background: a user's own maps, or a map computed from the image alone.

The paper thresholds the maps of an off-the-shelf model (Jiang et al., CVPR 2013). opencv-python has
no saliency module (it is part of opencv-contrib-python, which cannot be installed beside it), so
the built-in choice is written here, after a published method.
"""
from __future__ import annotations

import io
import os

import cv2
import numpy as np
from PIL import Image

from cian.data.pictures import UPRIGHT, png_orientation
from cian.errors import InputError, PathLike
from cian.files import decoding, read_bytes

_SIDE_PX = 200  # longer side at which barriers are computed: coarser than texture, finer than objects
_PASSES = 3  # rounds of the four sweeps; a path of the distance has at most about four bends a round
_BAND = 0.1  # width of the border band, as a portion of the shorter side (section 3.3 of the source)


def barrier_saliency(image: np.ndarray) -> np.ndarray:
    """Saliency by the barrier to the image's border and the colour contrast to it; no training, about 25 ms.

    The sum of two maps of maximum 1, rescaled to [0, 1]: :func:`barrier_distance` of the Lab
    channels, summed, and :func:`border_contrast`. These are the maps of "Minimum Barrier Salient
    Object Detection at 80 FPS" (Zhang et al., ICCV 2015, MB+, sections 3.2 and 3.3); its
    post-processing (smoothing, centre prior, contrast enhancement) is left out, because only small
    values matter to a background threshold.

    Parameters
    ----------
    image : (H, W, 3) uint8 RGB.

    Returns
    -------
    (H, W) float32 in [0, 1]; all zero for an image of one colour.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    lab = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), (3, 3), 0)  # (h, w, 3)
    saliency = _unit(barrier_distance(lab).sum(axis=2)) + _unit(border_contrast(lab))
    return _unit(cv2.resize(saliency, (width, height), interpolation=cv2.INTER_LINEAR))


def barrier_distance(channels: np.ndarray) -> np.ndarray:
    """Minimum barrier distance of every pixel to the border, for each channel by itself.

    The barrier of a path is its highest value minus its lowest one; the distance is the smallest
    barrier over all paths to the border. As in the source, paths are grown greedily (an upper bound
    of the distance), here by sweeping whole rows and columns in the four directions.

    Parameters
    ----------
    channels : (H, W, C) float32.

    Returns
    -------
    (H, W, C) float32, zero on the border.
    """
    distance = np.full_like(channels, np.inf)
    distance[[0, -1]] = 0
    distance[:, [0, -1]] = 0
    highest, lowest = channels.copy(), channels.copy()
    down = (distance, highest, lowest, channels)
    right = tuple(array.transpose(1, 0, 2) for array in down)
    for _ in range(_PASSES):
        for direction in (down, right):
            _sweep(*direction)
            _sweep(*(array[::-1] for array in direction))
    return distance


def _sweep(distance: np.ndarray, highest: np.ndarray, lowest: np.ndarray, values: np.ndarray) -> None:
    """Lengthen the paths of each line into the next one, in place, where that makes a smaller barrier."""
    for line in range(1, len(values)):
        high = np.maximum(highest[line - 1], values[line])
        low = np.minimum(lowest[line - 1], values[line])
        barrier = high - low
        better = barrier < distance[line]
        np.copyto(distance[line], barrier, where=better)
        np.copyto(highest[line], high, where=better)
        np.copyto(lowest[line], low, where=better)


def border_contrast(lab: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of each pixel's colour to those of the four border bands, the least
    similar band left out.

    One band may hold the object itself, so the largest of the four distances does not count.

    Parameters
    ----------
    lab : (H, W, 3) float32 CIE Lab.

    Returns
    -------
    (H, W) float32, each band's distance scaled to maximum 1 before the sum.
    """
    band = max(1, int(_BAND * min(lab.shape[:2])))
    distances = []
    for region in (lab[:band], lab[-band:], lab[:, :band], lab[:, -band:]):
        colours = region.reshape(-1, 3).astype(np.float64)
        offset = lab - colours.mean(axis=0)
        centred = colours - colours.mean(axis=0)
        # One Lab unit of variance is added, so that a band of a single colour has an inverse.
        precision = np.linalg.inv(centred.T @ centred / len(colours) + np.eye(3))
        distance = np.sqrt(np.maximum(np.einsum("hwi,ij,hwj->hw", offset, precision, offset, optimize=True),
                                      0))
        distances.append(distance / max(distance.max(), 1e-6))
    return (np.sum(distances, axis=0) - np.max(distances, axis=0)).astype(np.float32)


def saliency_path(root: PathLike, name: str) -> str:
    """The file of a user's saliency map."""
    return os.path.join(os.fspath(root), f"{name}.png")


def read_saliency(root: PathLike, name: str, shape: tuple) -> np.ndarray:
    """A user's saliency map ``root``/NAME.png, 0..255 for 0..1.

    Returns
    -------
    (H, W) float32 in [0, 1].

    Raises
    ------
    InputError
        Naming the file: missing, not an 8-bit image, of another size than ``shape`` (H, W), or of 0
        and 1 in place of 0 and 255.
    """
    path = saliency_path(root, name)
    content, remedy = read_bytes(path), "saliency maps are 8-bit gray PNG files in their images' sizes"
    with decoding(path, "is not a readable image", remedy):
        announced = Image.open(io.BytesIO(content)).size[::-1]
    if announced != tuple(shape):  # before memory for it is taken
        raise InputError(f"is {announced[1]}x{announced[0]} pixels, its image {shape[1]}x{shape[0]}",
                         file=path, remedy="save each map in its image's size")
    saliency = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if saliency is None or saliency.shape[:2] != announced:
        raise InputError("is not a readable image", file=path, remedy=remedy)
    if saliency.dtype != np.uint8 or saliency.ndim != 2:
        raise InputError(f"has {saliency.dtype} values of shape {saliency.shape}", file=path,
                         remedy="saliency maps are 8-bit gray PNG files, 0..255 for 0..1")
    if b"eXIf" in content and png_orientation(content) != UPRIGHT:
        raise InputError("has an EXIF orientation, and saliency maps have none", file=path,
                         remedy="store it upright")
    if saliency.max() == 1:
        raise InputError("holds 0 and 1 alone, and saliency is 0..255 for 0..1", file=path,
                         remedy="multiply the maps by 255")
    return saliency.astype(np.float32) / 255


def _unit(values: np.ndarray) -> np.ndarray:
    """``values`` shifted and scaled to [0, 1]; zero where they are all the same."""
    values = values - values.min()
    return (values / max(float(values.max()), 1e-6)).astype(np.float32)
