"""Whether an exported network computes what the live one does, on pictures or on generated patterns."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, List, Sequence

import numpy as np

from cian.tools.engine.fitting import Fit

if TYPE_CHECKING:
    from mxnet.gluon import HybridBlock

# largest difference of an output, relative to the root mean square of the live ones
MAX_RELATIVE_ERROR = 1e-4
MIN_LABEL_AGREEMENT = 0.9999
Network = Callable[[np.ndarray], np.ndarray]


class ExportError(RuntimeError):
    """What was written does not compute what the live network computes."""


@dataclass(frozen=True)
class Agreement:
    """How an exported file compares with the live network over a number of images."""

    images: int
    relative_error: float
    label_agreement: float

    def __str__(self) -> str:
        return (f"{self.images} images, largest error {self.relative_error:.1e} of the rms, "
                f"{100 * self.label_agreement:.4f} % of labels agree")


def compare(live: Network, exported: Network, images: Sequence[np.ndarray],
            largest_error: float = 0.0, least_labels: float = MIN_LABEL_AGREEMENT) -> Agreement:
    """Largest difference relative to the root mean square of the live outputs, and the share of equal labels.

    Raises
    ------
    ExportError
        When they differ by more than ``largest_error`` (default :data:`MAX_RELATIVE_ERROR`) or agree
        on less than ``least_labels``.
    """
    worst, equal, pixels = 0.0, 0, 0
    for image in images:
        want, got = live(image), exported(image)
        if want.shape != got.shape:
            raise ExportError(
                f"the exported network gives an output of the shape {got.shape} in place of {want.shape}")
        rms = float(np.sqrt(np.mean(np.square(want, dtype=np.float64)))) or 1.0
        worst = float(np.maximum(worst, np.abs(want - got).max() / rms))  # which keeps nan
        same = want.argmax(axis=1) == got.argmax(axis=1)
        equal, pixels = equal + int(same.sum()), pixels + same.size
    agreement = Agreement(len(images), worst, equal / pixels)
    if not (agreement.relative_error <= (largest_error or MAX_RELATIVE_ERROR)
            and agreement.label_agreement >= least_labels):
        raise ExportError(
            f"the exported network differs from the live one, and is not used: {agreement}")
    return agreement


def as_numpy(block: HybridBlock) -> Network:
    """A block as a function of arrays; several outputs are joined along the batch."""
    import mxnet as mx

    def run(images: np.ndarray) -> np.ndarray:
        outputs = block(mx.nd.array(images))
        return np.concatenate([output.asnumpy()
                               for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])])
    return run


def generated_images(size_px: int = 0, count: int = 3) -> List[np.ndarray]:
    """(1, 3, H, W) float32 raw RGB patterns of patches and noise, of different sizes unless
    ``size_px`` fixes one.
    """
    found = []
    for index in range(count):
        rng = np.random.RandomState(index)
        height, width = (size_px,) * 2 if size_px else ((129, 161), (98, 131), (177, 89))[index % 3]
        coarse = rng.uniform(0, 255, (1, 3, height // 16 + 1, width // 16 + 1))
        patches = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
        found.append(np.clip(patches + rng.normal(0, 12, patches.shape), 0, 255).astype(np.float32))
    return found


def fitted(picture: np.ndarray, size_px: int) -> np.ndarray:
    """(1, 3, H, W) float32 of a picture, warped to a square where a size is fixed."""
    height, width = picture.shape[:2]
    fit = Fit.of((height, width), "warp" if size_px else "native", size_px)
    return fit.apply(picture).transpose(2, 0, 1)[None].astype(np.float32)
