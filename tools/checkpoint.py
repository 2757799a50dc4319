"""Shows how a checkpoint fits a network, name by name, and hands momentum on between this project
and MXNet's Module.

Reads .params files of this project and of the original code, and every file that network.pretrained
takes. The exit code is 1 when a name is missing, extra or of another shape.

  python tools/checkpoint.py original/resnet101_largefov-0019.params --num-cls 21 \\
      --states original/resnet101_largefov-0019.states
  python tools/checkpoint.py runs/a/resnet101_largefov-0019.params \\
      --write-states resnet101_largefov-0019.states
"""
from __future__ import annotations

import argparse
import os
from typing import Any, Dict, Optional, Sequence

from cian.errors import InputError, run_tool


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("params", metavar="FILE", help="the .params file")
    result.add_argument(
        "--model", default="", metavar="NAME",
        help="network that it should fit [default: its metadata's, else the beginning of its name]")
    result.add_argument("--num-cls", type=int, default=0, metavar="N",
                        help="classes and background [default: its metadata's, else 21]")
    result.add_argument("--names", action="store_true", help="also the names that fit")
    result.add_argument("--states", metavar="FILE",
                        help="also read the momentum in this .states file of MXNet's Module")
    result.add_argument(
        "--write-states", metavar="FILE",
        help="write the momentum of our run, whose .state is in the same folder, as MXNet's Module loads it")
    result.add_argument("--devices", type=int, default=1, metavar="N",
                        help="devices of the Module that will load it [default: 1]")
    return result


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parser().parse_args(argv)
    from cian.symbols.params import assign
    from cian.symbols.pretrained import read_pretrained
    from cian.tools.engine.models import optimiser_states

    network = build(args)
    # '' is a prefix of every name: a report in place of an error
    report = assign(network, read_pretrained(network, args.params).values, source=args.params, new=("",))
    print(f"{args.params}: {network.settings['model']} with {network.settings['num_classes']} classes, "
          f"{len(report.loaded)} arrays fit" + (f": {', '.join(report.loaded)}" if args.names else ""))
    wrong = {"missing": report.missing, "extra": report.extra, "of another shape": report.mismatched}
    for kind, names in wrong.items():
        print(f"  {len(names)} {kind}" + (f": {', '.join(names)}" if names else ""))
    if args.states:
        momentum = optimiser_states.read_momentum(args.states, args.params)
        print(f"{args.states}: momentum of {len(momentum)} parameters")
    if args.write_states:
        optimiser_states.write_momentum(args.write_states, optimiser_states.module_order(network),
                                        momentum_of_run(args.params), devices=args.devices)
        print(f"{args.write_states}: written")
    return int(any(wrong.values()))


def build(args: argparse.Namespace) -> Any:
    """The network that the file should fit."""
    from cian.symbols.cian import CIAN
    from cian.symbols.metadata import metadata_path, read_metadata

    settings: Dict[str, Any] = {}
    if os.path.exists(metadata_path(args.params)):
        settings = dict(read_metadata(args.params).get("network", {}))
    settings.setdefault("model", os.path.basename(args.params).rpartition("-")[0])
    settings.update({key: value
                     for key, value in (("model", args.model), ("num_classes", args.num_cls)) if value})
    try:
        return CIAN(**settings)
    except TypeError as error:
        raise InputError("does not describe a segmentation network", file=metadata_path(args.params),
                         field="network") from error


def momentum_of_run(params: str) -> Dict[str, Any]:
    """Momentum in the state of the run whose last checkpoint this is.

    Raises
    ------
    InputError
        There is no state beside it, or it is of another epoch: a run keeps the last one only.
    """
    from cian.symbols.metadata import read_metadata
    from cian.tools.engine.models.snapshot import Snapshot

    metadata = read_metadata(params)
    snapshot = Snapshot(os.path.dirname(params), str(metadata.get("model")))
    state = snapshot.load_state()
    if state is None:
        raise InputError("does not exist", file=snapshot.state_path,
                         remedy="name a checkpoint in the folder of its run")
    if (state["epoch"], state["batch"]) != (metadata.get("epoch", -2) + 1, 0):
        raise InputError(f"is the state after {state['epoch']} epochs and {state['batch']} batches, not "
                         "that of the checkpoint", file=snapshot.state_path,
                         remedy="name the last checkpoint of a finished epoch")
    return state["trainer"]["momentum"]


if __name__ == "__main__":
    run_tool(main)
