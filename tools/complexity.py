"""Parameters and multiply-adds: the paper's Table 1 by its own convention, and everything counted
for every model and size.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any, Dict, List, Optional, Sequence

from cian.errors import InputError, run_tool
from cian.files import write_json


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    result.add_argument("--model", nargs="+", default=[], metavar="NAME",
                        help="models of the second table; none named is all of them")
    result.add_argument("--size", nargs="+", type=int, default=[321, 513], metavar="PX",
                        help="sides of the square input images")
    result.add_argument("--num-cls", type=int, default=21, metavar="N", help="classes with the background")
    result.add_argument("--group-size", type=int, default=2, metavar="N",
                        help="images in a group of cross-image affinity")
    result.add_argument("--layers", action="store_true",
                        help="also every layer of every network of the second table")
    result.add_argument("--json", metavar="FILE",
                        help="write all figures there, '-' for standard output in place of the tables")
    return result


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parser().parse_args(argv)
    from cian.symbols.cian import MODELS
    from cian.tools.engine.reproduction import table_one as complexity

    for size in args.size:
        if size < 9:
            raise InputError(f"{size} pixels are too few", field="--size", remedy="use at least 9")
    table, networks = complexity.table_one(), []
    for model in args.model or MODELS:
        for affinity in ("none", "self", "cross"):
            symbol, images = complexity.network_symbol(model, affinity, args.num_cls, args.group_size)
            for size in args.size:
                layers = complexity.count_layers(symbol, (images, 3, size, size))
                networks.append({"model": model, "affinity": affinity, "size": size, "images": images,
                                 "totals": complexity.totals(layers, images),
                                 "layers": layers if args.layers else []})
    if args.json != "-":
        print_table_one(table)
        print_networks(networks)
    if args.json:
        content = {"table_one": [dataclasses.asdict(row) for row in table],
                   "networks": [{**network, "totals": dataclasses.asdict(network["totals"]),
                                 "layers": [dataclasses.asdict(layer) for layer in network["layers"]]}
                                for network in networks]}
        if args.json == "-":
            print(json.dumps(content, indent=1))
        else:
            write_json(args.json, content)
    return 0


def print_table_one(rows: Sequence[Any]) -> None:
    """Table 1: the paper's figures and ours."""
    print("Table 1 of the paper: ResNet-101, one 321x321 image. Its convention: convolution weights, each "
          "once, and the affinity's\n"
          "products; no batch norm, bias or classification layer; stride in the first 1x1 of a stage "
          "(released network: in the 3x3).\n")
    print(f"{'':16}{'paper':>16}{'its convention':>24}{'released network':>24}{'everything':>22}")
    for row in rows:
        cells = [f"{row.paper[0]:.1f} M {row.paper[1]:6.1f} G"] + [
            f"{total.parameters:,} {total.multiply_adds / 1e9:8.3f} G"
            for total in (row.convention, row.released)]
        cells.append(f"{row.everything.parameters / 1e6:.2f} M {row.everything.multiply_adds / 1e9:8.3f} G")
        print(f"{row.name:16}{cells[0]:>16}{cells[1]:>24}{cells[2]:>24}{cells[3]:>22}")


def print_networks(networks: List[Dict[str, Any]]) -> None:
    """A line for each model, affinity and size, and with layers one for each of them."""
    print("\nEverything counted, for one image: parameters; moving statistics; multiply-adds of "
          "convolutions and products; other operations"
          "\n(an element each). 'cross' is training on groups with both branches; prediction always is "
          "'self' (or 'none').\n")
    print(f"{'model':28}{'affinity':>9}{'size':>6}{'parameters':>14}{'statistics':>12}{'multiply-adds':>16}{'other':>12}")
    for network in networks:
        total = network["totals"]
        print(f"{network['model']:28}{network['affinity']:>9}{network['size']:>6}{total.parameters:>14,}{total.statistics:>12,}"
              f"{total.multiply_adds / 1e9:>14.3f} G{total.other / 1e9:>10.3f} G")
        for layer in network["layers"]:
            shape = "x".join(map(str, layer.shape))
            print("    "
                  f"{layer.name:44}{layer.operator:18}{shape:>20}{layer.parameters:>12,}{layer.multiply_adds:>18,}{layer.other:>14,}")


if __name__ == "__main__":
    run_tool(main)
