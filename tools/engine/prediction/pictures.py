"""Pictures of what the network does: Figure 3 of the paper (affinity of a pair of images) and
Figure 4 (predictions side by side).
"""
from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import cv2
import matplotlib
import mxnet as mx
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cian.data.classes import IGNORE, ClassTable, palette, read_label_png
from cian.data.tree import DatasetTree
from cian.errors import InputError, PathLike
from cian.files import atomic_write_bytes
from cian.symbols.cian import CIAN
from cian.tools.engine.fitting import resize_matrix
from cian.tools.engine.images import read_image
from cian.tools.engine.prediction.outputs import overlay
from cian.tools.engine.report import Page

PANEL_INCHES = 2.4
BRANCHES = ("self", "cross")


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3) uint8 RGB with its title."""

    title: str
    picture: np.ndarray


@dataclass(frozen=True)
class PairView:
    """What Figure 3 shows of a query and its reference.

    Attributes
    ----------
    class_index : the class whose activation is shown.
    pixel : (x, y) in the query, whose affinity is shown.
    panels : pictures by name, see :meth:`rows`.
    """

    class_index: int
    pixel: Tuple[int, int]
    panels: Dict[str, Panel]

    def rows(self) -> List[List[Panel]]:
        """The figure: for self- and for cross-affinity a row of activations above a row of predictions."""
        get = self.panels.__getitem__
        return [[get("query"), get("average_self"), get("activation_raw"), get("activation_residual_self"),
                 get("activation_augmented_self")],
                [get("query_classes"), get("pixel_self"), get("classes_raw"), get("classes_residual_self"),
                 get("classes_augmented_self")],
                [get("reference"), get("average_cross"), get("activation_raw"),
                 get("activation_residual_cross"), get("activation_augmented_cross")],
                [get("reference_classes"), get("pixel_cross"), get("classes_raw"),
                 get("classes_residual_cross"), get("classes_augmented_cross")]]


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., h, w) to (..., height, width), bilinear with aligned corners."""
    return resize_matrix(maps.shape[-2], height) @ maps.astype(np.float32) @ resize_matrix(maps.shape[-1],
                                                                                           width).T


def heat(image: np.ndarray, values: np.ndarray, opacity: float = 0.75) -> np.ndarray:
    """The image in gray under values (h, w) >= 0, the largest in full colour."""
    values = enlarge(values, *image.shape[:2])
    return _tinted(image, values / max(float(values.max()), 1e-12), "inferno", opacity)


def signed_heat(image: np.ndarray, values: np.ndarray, limit: float, opacity: float = 0.8) -> np.ndarray:
    """The image in gray under values (h, w) of both signs: red above 0, blue below, full colour at
    ``limit``.
    """
    values = enlarge(values, *image.shape[:2])
    return _tinted(image, 0.5 + 0.5 * np.clip(values / max(limit, 1e-12), -1, 1), "RdBu_r", opacity)


def _tinted(image: np.ndarray, level: np.ndarray, colour_map: str, opacity: float) -> np.ndarray:
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    colours = 255 * matplotlib.colormaps[colour_map](level)[..., :3]
    return (opacity * colours + (1 - opacity) * gray).astype(np.uint8)


def mark(image: np.ndarray, pixel: Tuple[int, int]) -> np.ndarray:
    """A copy of the image with a ring around (x, y)."""
    marked = image.copy()
    radius = max(3, round(min(image.shape[:2]) / 28))
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 0), 2)):
        cv2.circle(marked, pixel, radius, colour, max(1, thickness * radius // 8), cv2.LINE_AA)
    return marked


def label_picture(labels: np.ndarray) -> np.ndarray:
    """(H, W) class indices in VOC's colours, ignored pixels in light gray."""
    colours = palette()
    colours[IGNORE] = (226, 226, 226)
    return colours[labels]


def compare_pair(net: CIAN, query: np.ndarray, reference: np.ndarray, class_names: Sequence[str], *,
                 class_index: int = 0, pixel: Optional[Tuple[int, int]] = None) -> PairView:
    """Everything that Figure 3 shows of two (H, W, 3) uint8 RGB images, from one pass of the network.

    The activation of a class is its logit above that of the background. The last layer is linear,
    so activation of the raw feature and of the residual add up to that of the augmented one; all of
    them share one scale.

    Parameters
    ----------
    net : a network with affinity, as :func:`~cian.tools.engine.models.snapshot.load_network` gives it.
    class_index : the class to show; 0 takes the one that the augmented query has most of.
    pixel : (x, y) in the query; None takes the pixel where that class is strongest.

    Raises
    ------
    InputError
        For a pixel outside of the query, a class that does not exist, a network without affinity.
    """
    height, width = query.shape[:2]
    if not 0 <= class_index < len(class_names):
        raise InputError(f"there is no class {class_index}", field="class",
                         remedy=f"use 1 to {len(class_names) - 1}")
    if pixel is not None and not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise InputError(f"{pixel[0]},{pixel[1]} is outside of the query's {width}x{height} pixels",
                         field="pixel")
    device = next(iter(net.collect_params().values())).list_ctx()[0]
    batches = [mx.nd.array(image.transpose(2, 0, 1)[None], ctx=device, dtype="float32")
               for image in (query, reference)]
    found = {name: array.asnumpy() for name, array in net.visual(*batches).items()}
    own_reference = net.for_prediction()(batches[1])[0].asnumpy()[0]
    if class_index == 0:
        counts = np.bincount(found["augmented_cross"].argmax(axis=0).ravel(), minlength=len(class_names))[1:]
        strongest = found["augmented_cross"][1:].max(axis=(1, 2))
        class_index = 1 + int(counts.argmax() if counts.any() else strongest.argmax())
    activations = {name: maps[class_index] - maps[0]
                   for name, maps in found.items() if not name.startswith("affinity")}
    if pixel is None:
        y, x = np.unravel_index(int(activations["augmented_self"].argmax()),
                                activations["augmented_self"].shape)
        pixel = (min(8 * int(x), width - 1), min(8 * int(y), height - 1))
    rows, columns = activations["raw"].shape
    at = round(pixel[1] * (rows - 1) / max(height - 1,
                                           1)) * columns + round(pixel[0] * (columns - 1) / max(width - 1, 1))
    panels = _pair_panels(query, reference, class_names[class_index], found, activations, at, pixel)
    panels["reference_classes"] = Panel("prediction for the reference", _classes(reference, own_reference))
    return PairView(class_index, pixel, panels)


def _pair_panels(query: np.ndarray, reference: np.ndarray, name: str, found: Dict[str, np.ndarray],
                 activations: Dict[str, np.ndarray], at: int, pixel: Tuple[int, int]) -> Dict[str, Panel]:
    limit = max(float(np.abs(activation).max()) for activation in activations.values())
    panels = {"query": Panel("query", mark(query, pixel)), "reference": Panel("reference", reference),
              "query_classes": Panel("prediction for the query", _classes(query, found["augmented_self"]))}
    for branch, image in zip(BRANCHES, (query, reference)):
        affinity = found[f"affinity_{branch}"]
        seen = mark(heat(image, affinity[..., at]), pixel) if branch == "self" else heat(image,
                                                                                         affinity[..., at])
        panels[f"average_{branch}"] = Panel(f"average {branch}-affinity", heat(image, affinity.mean(axis=-1)))
        panels[f"pixel_{branch}"] = Panel(f"{branch}-affinity of the pixel", seen)
    for key, activation in activations.items():
        words = {"raw": "raw", "residual_self": "self residual", "residual_cross": "cross residual",
                 "augmented_self": "augmented by self", "augmented_cross": "augmented by cross"}[key]
        panels[f"activation_{key}"] = Panel(f"{name}: {words}", signed_heat(query, activation, limit))
        panels[f"classes_{key}"] = Panel(f"classes: {words}", _classes(query, found[key]))
    return panels


def _classes(image: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return overlay(image, enlarge(logits, *image.shape[:2]).argmax(axis=0).astype(np.uint8))


def draw_grid(rows: Sequence[Sequence[Panel]], legend: Sequence[Tuple[str, np.ndarray]] = (),
              titles: str = "each") -> bytes:
    """Panels in rows as a PNG file's content, with a legend of (class name, RGB colour) below.

    Parameters
    ----------
    titles : 'each' above every panel, or 'first' above the first row only.
    """
    columns = max(len(row) for row in rows)
    heights = [max(panel.picture.shape[0] / panel.picture.shape[1] for panel in row) for row in rows]
    title_inches, legend_inches = 0.26, 0.45 if legend else 0.05
    tall = [PANEL_INCHES * height + (title_inches if titles == "each" or at == 0 else 0.06)
            for at, height in enumerate(heights)]
    total_width, total_height = columns * (PANEL_INCHES + 0.06), sum(tall) + legend_inches
    figure = Figure(figsize=(total_width, total_height), dpi=110, facecolor="white")
    top = total_height
    for at, (row, height) in enumerate(zip(rows, heights)):
        top -= tall[at]
        for column, panel in enumerate(row):
            left = column * (PANEL_INCHES + 0.06) + 0.03
            axes = figure.add_axes((left / total_width, (top + 0.03) / total_height,
                                    PANEL_INCHES / total_width, PANEL_INCHES * height / total_height))
            axes.imshow(panel.picture, interpolation="nearest")
            axes.set_axis_off()
            if titles == "each" or at == 0:
                axes.set_title(panel.title, fontsize=9, pad=3)
    if legend:
        patches = [Patch(facecolor=colour / 255, edgecolor="gray", label=name) for name, colour in legend]
        figure.legend(handles=patches, loc="lower center", ncol=min(len(patches), 2 * columns), fontsize=9,
                      frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def class_legend(class_names: Sequence[str],
                 label_maps: Sequence[np.ndarray]) -> List[Tuple[str, np.ndarray]]:
    """(name, colour) of the foreground classes that occur in any of the label maps."""
    present = np.unique(np.concatenate([np.unique(labels) for labels in label_maps]))
    return [(class_names[value], palette()[value]) for value in present if 0 < value < len(class_names)]


def gallery(images: Sequence[np.ndarray], columns: Sequence[Tuple[str, Sequence[np.ndarray]]],
            class_names: Sequence[str]) -> bytes:
    """Figure 4 as a PNG file's content: each row an image and its label map in every column (title,
    label maps in order).
    """
    rows = [[Panel("image", image), *(Panel(title, label_picture(maps[at])) for title, maps in columns)]
            for at, image in enumerate(images)]
    return draw_grid(rows, class_legend(class_names, [labels for _, maps in columns for labels in maps]),
                     titles="first")


def pairs_by_class(tree: DatasetTree, name_or_path: str, count: int) -> List[Tuple[str, str]]:
    """The first ``count`` names of a list that share a class with another, each with the next such
    one (in a circle).
    """
    names = tree.names(name_or_path)
    labels = tree.labels(names)[:, 1:]
    pairs: List[Tuple[str, str]] = []
    for at in range(len(names)):
        if len(pairs) == count:
            break
        order = [(at + step) % len(names) for step in range(1, len(names))]
        partner = next((other for other in order if (labels[at] & labels[other]).any()), None)
        if partner is not None:
            pairs.append((names[at], names[partner]))
    if not pairs:
        raise InputError("has no two images that share a class", file=name_or_path,
                         remedy="name a pair with --pair")
    return pairs


def write_pair(folder: PathLike, net: CIAN, query: str, reference: str, class_names: Sequence[str], *,
               class_name: str = "", pixel: Optional[str] = None, page: Optional[Page] = None) -> str:
    """Draw Figure 3 of two image files into ``folder``, and on the page; returns the picture's path.

    Parameters
    ----------
    class_name : class of the activations; empty chooses.
    pixel : 'X,Y' in the query; None chooses.
    """
    at = None
    if pixel is not None:
        x, comma, y = pixel.partition(",")
        if not (comma and x.strip().isdecimal() and y.strip().isdecimal()):
            raise InputError(f"{pixel!r} is no pixel", field="--pixel",
                             remedy="write X,Y, for example 120,80")
        at = (int(x), int(y))
    index = ClassTable(class_names).index(class_name) if class_name else 0
    images = [read_image(path) for path in (query, reference)]
    view = compare_pair(net, images[0], images[1], class_names, class_index=index, pixel=at)
    names = [os.path.splitext(os.path.basename(path))[0] for path in (query, reference)]
    content = draw_grid(view.rows())
    target = os.path.join(folder, f"pair-{names[0]}-{names[1]}.png")
    atomic_write_bytes(target, content)
    if page is not None:
        page.text(
            f"{names[0]} (query) and {names[1]} (reference); activations of {class_names[view.class_index]}; "
            f"pixel {view.pixel[0]},{view.pixel[1]}.")
        page.picture(content, f"Figure 3 of {names[0]} and {names[1]}")
    return target


def write_gallery(folder: PathLike, tree: DatasetTree, names: Sequence[str],
                  columns: Sequence[Tuple[str, str]], *, page: Optional[Page] = None) -> str:
    """Draw Figure 4 into ``folder``, and on the page: a row for each name, a column for each
    (title, folder of NAME.png), and the truth
    where there is one; returns the picture's path."""
    maps = [(title, [read_label_png(os.path.join(source, f"{name}.png"), len(tree.classes))
                     for name in names]) for title, source in columns]
    if tree.mask_root and all(os.path.exists(tree.mask_path(name)) for name in names):
        maps.append(("truth", [read_label_png(tree.mask_path(name), len(tree.classes)) for name in names]))
    content = gallery([read_image(tree.image_path(name)) for name in names], maps, tree.classes.names)
    target = os.path.join(folder, "gallery.png")
    atomic_write_bytes(target, content)
    if page is not None:
        page.picture(content, "Predictions side by side")
    return target
