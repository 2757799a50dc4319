"""Makes index maps (palette PNG, the class in each pixel) of masks in colours.

Masks in RGB, and palette PNGs whose palette another program has ordered anew, are read by their
colours: those of PASCAL VOC for the positions of the class list, or those of a file (--colours) of
lines "NAME R G B" or of CVAT's labelmap.txt, "NAME:R,G,B::". A colour that no class has stops
everything, and nothing is written.

  python tools/convert_masks.py --masks SegmentationClass --classes classes.txt --out SegmentationClassAug
  python tools/convert_masks.py --masks SegmentationClass --classes classes.txt --colours labelmap.txt --out m
"""
from __future__ import annotations

import argparse
from typing import Optional, Sequence

from cian.data.classes import load_classes
from cian.data.masks import convert_masks, read_colours, voc_colours
from cian.errors import run_tool


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; prints how many masks were written."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", required=True, metavar="FOLDER", help="folder of NAME.png (or .bmp, .tif)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the index maps")
    parser.add_argument("--classes", default="voc", metavar="FILE",
                        help="class list, background first [default: VOC's]")
    parser.add_argument("--colours", metavar="FILE", help="colours of the classes by name [default: VOC's]")
    parser.add_argument("--by", choices=("colour", "index"), default="colour",
                        help="index: keep the values of palette PNGs, and give them VOC's palette "
                        "[default: colour]")
    args = parser.parse_args(argv)
    classes = load_classes(args.classes)
    colours = read_colours(args.colours, classes) if args.colours else voc_colours(classes)
    count = convert_masks(args.masks, args.out, classes, None if args.by == "index" else colours)
    print(f"{args.out}: {count} index maps of {args.masks}, by {args.by}")
    return 0


if __name__ == "__main__":
    run_tool(main)
