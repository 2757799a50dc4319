"""Writes a trained network for other programs: MXNet symbol and parameters, ONNX, or the training symbol.

Each file is loaded again and compared with the live network on images before it gets its name."""
from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import Optional, Sequence

from cian.data.classes import load_classes
from cian.errors import InputError, run_tool
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.images import find_images, read_image

EPILOG = """\
symbol    PREFIX-symbol.json, PREFIX-0000.params and its .json: any image size;
          SymbolBlock.imports and Module load it
onnx      PREFIX.onnx with its metadata inside: any size, or one square image of --size pixels
          (needs cian[export])
training  PREFIX-train-symbol.json and -0000.params: both branches and the loss, for Module
Images are raw RGB 0..255 in all of them. See docs/export.md."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; 1 when a written file differs from the live network (and was removed)."""
    args = parse(argv)
    config = config_from(args)
    source = args.checkpoint or config.run.snapshot
    if not source:
        raise InputError("no network was named", field="--checkpoint", remedy="give it, or --snapshot")
    if args.size and not 9 <= args.size <= 4096:
        raise InputError(f"{args.size} pixels is not a size", field="--size",
                         remedy="use 9 to 4096, or leave it out")

    # imported here because it loads MXNet, whose threads depend on the devices
    from cian.tools.engine.export import write as export
    from cian.tools.engine.models.agreement import ExportError
    from cian.tools.engine.models.model_files import load_checkpoint
    procedure = export.Procedure(resolution=args.resolution, output=args.output, size_px=args.size)
    if args.test_time:
        procedure = replace(procedure, scales=config.predict.scales, add_max=config.predict.add_max,
                            mirror=config.predict.mirror)
    net, metadata = load_checkpoint(source, model=args.model,
                                    classes=load_classes(args.classes) if args.classes else None)
    prefix = args.out or os.path.join(config.run.snapshot or os.path.dirname(source), "export",
                                      net.settings["model"])
    pictures = [read_image(sample.path) for sample in find_images(args.images)] if args.images else []
    failed = False
    for kind in args.format.split(","):
        try:
            agreement = export.export_network(kind, net, prefix, metadata, procedure, loss=config.loss,
                                              pictures=pictures)
        except ExportError as error:
            print(f"error: {kind}: {error}", file=sys.stderr)
            failed = True
        else:
            print(f"{', '.join(name.format(prefix) for name in export.FILES[kind])}: {agreement}")
    return int(failed)


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__ or "", ("run",), EPILOG)
    own = parser.add_argument_group("export")
    own.add_argument("--checkpoint", metavar="FILE",
                     help=".params file, or a snapshot folder [default: last epoch in SNAPSHOT]")
    own.add_argument("--model", default="", metavar="NAME",
                     help="model name, for a file without metadata or one of several in the folder")
    own.add_argument("--classes", metavar="FILE",
                     help="'voc' or a file with a class a line, for a file without metadata")
    own.add_argument("--out", metavar="PREFIX",
                     help="path and beginning of the files' names [default: SNAPSHOT/export/MODEL]")
    own.add_argument("--format", default="symbol,onnx", metavar="A,B",
                     help="of symbol, onnx and training [default: symbol,onnx]")
    own.add_argument(
        "--test-time", action="store_true",
        help="put predict.scales, their maximum and the mirrored image inside; else one pass over the image")
    own.add_argument("--output", default="logits", choices=("logits", "probabilities"),
                     help="[default: logits]")
    own.add_argument(
        "--resolution", default="input", choices=("input", "stride8"),
        help="output at the image's size, or as the network gives it, (side-1)//8+1 [default: input]")
    own.add_argument("--size", type=int, default=0, metavar="N",
                     help="fix ONNX to one image of NxN pixels [default: any size]")
    own.add_argument("--images", nargs="+", metavar="PATH",
                     help="images to compare on [default: generated ones]")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main)
