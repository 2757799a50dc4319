"""The one way from an image to pixels: how it is turned, how deep it is, and which flaws of a JPEG matter.

The rule for every way in (files of any format, PIL images, records): pixels are those that a viewer
shows, so what EXIF says about the orientation is done, and nothing is known of it afterwards.
Arrays are taken as they are. A label map has no orientation: beside a turned image it is refused,
unless this program made it from the turned image (see :func:`refuse_turned`).
"""
from __future__ import annotations

import io
import re
from typing import Any, Iterable, NamedTuple, Optional

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from cian.errors import InputError, PathLike
from cian.files import decoding
from cian.later import imported_later

with imported_later("cv2"):  # who looks at label maps alone spares its 42 MB
    import cv2

# of an image; its pixels take three bytes each, and decoding it twice as much for a moment
MAX_PIXELS = 2 ** 27
_SMALLER = "make it smaller, or copy it again if it is not of that size"
ORIENTATION = 0x0112  # tag of EXIF
UPRIGHT = 1
_START_OF_SCAN, _END = 0xDA, b"\xff\xd9"


class Picture(NamedTuple):
    """A decoded image file: (H, W, 3) uint8 BGR as a viewer shows it, the orientation that it was
    stored with (1 is upright), what the decoder warned of, and of a JPEG the content without what
    it warned of, where that costs no pixel.
    """

    pixels: np.ndarray
    orientation: int = UPRIGHT
    warning: str = ""
    content: bytes = b""


def jpeg_orientation(content: bytes) -> int:
    """EXIF's orientation of a JPEG, 1 to 8; 1 where it says none. Only the headers are looked at."""
    position = 2
    while content[position:position + 1] == b"\xff" and position + 4 <= len(content):
        marker = content[position + 1]
        if marker == _START_OF_SCAN:
            break
        if marker == 0xFF:  # a byte that fills
            position += 1
            continue
        length = int.from_bytes(content[position + 2:position + 4], "big")
        if marker == 0xE1 and content[position + 4:position + 10] == b"Exif\0\0":
            return _exif_orientation(content[position + 4:position + 2 + length])
        position += 2 + length
    return UPRIGHT


def png_orientation(content: bytes) -> int:
    """EXIF's orientation of a PNG, 1 to 8; 1 where it says none, or is damaged."""
    try:
        with Image.open(io.BytesIO(content)) as file:
            return _known(file.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # of nearly any kind on damaged bytes, and decoding it names the damage
        return UPRIGHT


def _exif_orientation(block: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(block)
        return _known(exif.get(ORIENTATION, UPRIGHT))
    except Exception:  # of nearly any kind on damaged bytes, and viewers pass over a damaged block too
        return UPRIGHT


def _known(orientation: Any) -> int:
    return int(orientation) if orientation in range(1, 9) else UPRIGHT


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) pixels as stored, turned and mirrored as an EXIF orientation says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels if orientation == UPRIGHT else np.ascontiguousarray(pixels)


def jpeg_pixels(content: bytes) -> Optional[np.ndarray]:
    """(H, W, 3) uint8 BGR of a JPEG that was checked before; None where OpenCV cannot decode it."""
    pixels = _as_stored(content)
    if pixels is None and not content.endswith(_END):  # which OpenCV insists on
        pixels = _as_stored(content + _END)
    return None if pixels is None else upright(pixels, jpeg_orientation(content))


def _as_stored(content: bytes, flags: int = 0) -> Any:
    return cv2.imdecode(np.frombuffer(content, np.uint8),
                        cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | flags)


def decode_jpeg(content: bytes, path: PathLike, warnings: str = "harmless") -> Picture:
    """The picture of a JPEG file's content.

    OpenCV, which training decodes with, fills what a damaged file lacks with something;
    ``simplejpeg`` reports what it found.

    Parameters
    ----------
    warnings : where the decoder warns, 'refuse' takes nothing;
        'harmless' takes files that have no warning left once an unusual header is put right,
        padding before the end is cut off or a missing end is added, so that no pixel is lost;
        'accept' takes everything that OpenCV decodes.

    Raises
    ------
    InputError
        Naming ``path``: no JPEG, or a damaged one.
    """
    if content[:2] != b"\xff\xd8":
        raise InputError("is not a JPEG file", file=path, remedy="convert it to JPEG")
    refuse_bomb(content, path)
    warning = _warning(content)
    mended = _mend(content, warning) if warning else content
    damaged = warning and (warnings == "refuse" or warnings == "harmless" and mended is None)
    content = mended or content
    try:
        pixels = None if damaged else jpeg_pixels(content)
    except cv2.error as error:
        damaged, pixels, warning = True, None, str(error)
    if damaged:
        raise InputError(f"is a damaged JPEG ({warning})", file=path,
                         remedy="copy it again, or take what can be decoded with data.jpeg_warnings=accept")
    if pixels is None:
        raise InputError("is a JPEG that OpenCV does not decode", file=path,
                         remedy="convert it to plain 8-bit JPEG")
    return Picture(pixels, jpeg_orientation(content), warning, content)


def refuse_bomb(content: bytes, path: PathLike) -> None:
    """Refuse an image file that announces more than :data:`MAX_PIXELS`, before memory for them is
    taken; what cannot be read at all is left to the decoder.
    """
    height = width = 0
    try:
        if content[:2] == b"\xff\xd8":
            height, width, _, _ = simplejpeg.decode_jpeg_header(content)
        else:
            width, height = Image.open(io.BytesIO(content)).size
    except Image.DecompressionBombError as error:
        raise InputError(str(error), file=path, remedy=_SMALLER) from error
    except Exception:  # on damaged bytes Pillow raises nearly any kind of error
        return
    if width * height > MAX_PIXELS:
        raise InputError(f"announces {width}x{height} pixels, and at most {MAX_PIXELS} are read", file=path,
                         remedy=_SMALLER)


def _warning(content: bytes) -> str:
    """What libjpeg has to say against a file first; empty where there is nothing."""
    try:
        simplejpeg.decode_jpeg(content, strict=True)
    except ValueError as error:
        return str(error)
    return ""


def _mend(content: bytes, warning: str) -> Optional[bytes]:
    """The file without any warning, after mending what touches no pixel; None where that is not enough."""
    for _ in range(4):
        mended = _mended(content, warning)
        if mended is None:
            return None
        content, warning = mended, _warning(mended)
        if not warning:
            return content
    return None


def _mended(content: bytes, warning: str) -> Optional[bytes]:
    """The file without the flaw of a warning, or None where it may have cost pixels."""
    scan = content.rfind(b"\xff\xda")
    if scan < 0:
        return None
    sequential = b"\xff\xc2" not in content[:scan]
    if "Invalid SOS parameters" in warning and sequential:
        end = scan + 2 + int.from_bytes(content[scan + 2:scan + 4], "big")
        return content[:end - 3] + b"\0\x3f\0" + content[end:]
    version = content.find(b"JFIF\0")
    if "unknown JFIF revision" in warning and version > 0:
        return content[:version + 5] + b"\1" + content[version + 6:]
    padding = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    if padding:
        end = content.find(_END, scan)
        start = end - int(padding[1])
        unused = content[start:end]
        return content[:start] + content[end:] if start > scan and unused in (
            bytes(len(unused)), b"\xff" * len(unused)) else None
    if "Premature end of JPEG file" in warning and sequential and not content.endswith(_END):
        return content + _END
    return None


def decode_picture(content: bytes, path: PathLike, warnings: str = "harmless") -> Picture:
    """The picture of an image file's content, JPEG or another format that OpenCV and Pillow read.

    Raises
    ------
    InputError
        Naming ``path``: no image, a damaged one, or one whose depth says nothing about its brightness.
    """
    if content[:2] == b"\xff\xd8":
        return decode_jpeg(content, path, warnings)
    refuse_bomb(content, path)
    with decoding(path, "is no image, or a damaged one", "use JPEG or PNG"):
        with Image.open(io.BytesIO(content)) as file:
            orientation = _known(file.getexif().get(ORIENTATION, UPRIGHT))
            file.load()
        pixels = _as_stored(content, cv2.IMREAD_ANYDEPTH)
    if file.format == "TIFF" and orientation != UPRIGHT:  # OpenCV turns some depths of it by itself
        return Picture(np.ascontiguousarray(pil_rgb(file, path)[..., ::-1]), orientation)
    if pixels is None:
        raise InputError("is a damaged image, or of a kind that cannot be read", file=path,
                         remedy="convert it to JPEG or PNG")
    return Picture(upright(eight_bits(pixels, path), orientation), orientation)


def eight_bits(samples: np.ndarray, path: Optional[PathLike] = None) -> np.ndarray:
    """Samples as uint8; those of 16 bits by their upper half.

    Raises
    ------
    InputError
        For 16 bits of which the upper one is used nowhere: a camera's 10, 12 or 14 bits, which
        would be read as nearly black. For samples of another type.
    """
    remedy = "scale its samples to 0..255 and save it as an 8-bit picture"
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype.newbyteorder("=") != np.uint16:
        raise InputError(f"has samples of type {samples.dtype}", file=path, remedy=remedy)
    if samples.max(initial=0) < 2 ** 15:
        raise InputError(f"has 16 bits a sample, but none above {samples.max(initial=0)} of 65535, so it "
                         "would be read as (nearly) black", file=path, remedy=remedy)
    return (samples >> 8).astype(np.uint8)


def pil_rgb(image: Image.Image, path: Optional[PathLike] = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a PIL image, as a viewer shows it; errors of :func:`eight_bits`."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        samples = np.asarray(image)
        if image.mode == "I" and samples.min(initial=0) >= 0 and samples.max(initial=0) < 2 ** 16:
            samples = samples.astype(np.uint16)
        return np.repeat(eight_bits(samples, path)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def refuse_turned(turned: Iterable[str], what: str, file: PathLike) -> None:
    """Refuse label maps of images whose EXIF orientation is not 1, the names of which are ``turned``.

    Raises
    ------
    InputError
        Nobody can tell whether such a map was drawn on the stored pixels or on those that a viewer shows.
    """
    names = list(turned)
    if names:
        raise InputError(f"holds {what} of {len(names)} images that EXIF says are to be turned: "
                         f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}; nobody can tell "
                         "whether these maps are turned too", file=file,
                         remedy="store the images upright (mogrify -auto-orient), with maps that fit")
