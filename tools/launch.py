"""Trains on several processes or machines: starts a command as the workers, servers and scheduler of
MXNet's parameter server, by the tracker of MXNet's wheel.

Put the launcher's own flags first; everything from the command's name on is the command, which needs
run.kvstore=dist_sync. See docs/machines.md.

  python tools/launch.py -n 2 python tools/train.py -c mine.yaml --snapshot runs/cian run.kvstore=dist_sync
"""
from __future__ import annotations

import argparse
from typing import Optional, Sequence

from cian.errors import InputError, run_tool
from cian.tools.engine.training.launching import LAUNCHERS, LOOPBACK, launch


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; 1 when a process has failed."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     usage="%(prog)s -n N [flags] COMMAND ...",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--num-workers", type=int, required=True, metavar="N",
                        help="processes that train")
    parser.add_argument("-s", "--num-servers", type=int, default=1, metavar="N",
                        help="processes that sum the gradients, which share the parameters [default 1]")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local",
                        help="how to start them [default local]")
    parser.add_argument("-H", "--host-file", metavar="FILE", help="host names, a line each (ssh, mpi)")
    parser.add_argument("--host", default="", metavar="ADDRESS",
                        help=f"of this machine, where the scheduler listens [default for local: {LOOPBACK}]")
    parser.add_argument("--port", type=int, default=0, metavar="N",
                        help="of the scheduler; the next one is the watch's [default: free ones]")
    parser.add_argument("--tracker", action="append", default=[], metavar="OPTION",
                        help="an option of dmlc_tracker, such as --tracker=--queue=long; repeatable")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.command or min(args.num_workers, args.num_servers) < 1:
        raise InputError("a command, a worker and a server are needed", field="command line",
                         remedy="see tools/launch.py --help")
    hosts = [f"--host-file={args.host_file}"] if args.host_file else []
    return launch(args.command, args.num_workers, args.num_servers, args.launcher, args.host, args.port,
                  [*hosts, *args.tracker])


if __name__ == "__main__":
    run_tool(main)
