"""The command line that all tools share: configuration files, overrides, and the flags that users
of the original code know.

A tool builds its parser with :func:`make_parser`, adds what is its own, and turns the parsed
arguments into a configuration with :func:`config_from`. Nothing here imports MXNet: the number of
its threads depends on the devices, which are known only afterwards.
"""
from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence

from cian.errors import InputError
from cian.tools.engine.config import PRESETS, SECTIONS, Config, load_config
from cian.tools.engine.devices import limit_threads
from cian.tools.flags import add_flags, value_text


class _Parser(argparse.ArgumentParser):
    """Errors are one line (an :class:`InputError`), and ``section.key=value`` may stand between flags."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message, field="command line", remedy=f"see {self.prog} --help")

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        return self.parse_intermixed_args(args, namespace)


def make_parser(description: str, groups: Sequence[str], epilog: str = "") -> argparse.ArgumentParser:
    """A parser with the shared flags of the named groups.

    Parameters
    ----------
    description, epilog : text above and below the flags in ``--help``.
    groups : keys of :data:`~cian.tools.flags.FLAGS`; where two groups share a flag, the first one has it.

    Raises
    ------
    InputError
        By ``parse_args``, in place of argparse's usage and exit.
    """
    parser = _Parser(description=description, epilog=epilog, allow_abbrev=False,
                     usage="%(prog)s [flags] [section.key=value ...]",
                     formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
        prog, max_help_position=30, width=120))
    shared = parser.add_argument_group("configuration")
    shared.add_argument("-c", "--config", action="append", default=[], metavar="FILE",
                        help="YAML file of sections and keys; repeatable, the last wins")
    shared.add_argument("--preset", choices=sorted(PRESETS),
                        help="original: what the released code does (default); paper: what the text says")
    shared.add_argument("--print-config", action="store_true",
                        help="print the resolved configuration with all keys, and stop")
    shared.add_argument("overrides", nargs="*", metavar="section.key=value",
                        help="any key of the configuration; wins over files and flags")
    add_flags(parser, groups)
    return parser


def resolved(args: argparse.Namespace, files: Sequence[str] = (),
             defaults: Optional[Mapping[str, Mapping[str, Any]]] = None) -> Config:
    """The configuration that parsed arguments ask for; ``files`` are laid under those of
    ``--config``, and ``defaults`` of sections under all of them.
    """
    flags: Dict[str, Dict[str, Any]] = {}
    _refuse_two_values(args.overrides)
    for key, value in vars(args).items():
        if "." in key and value is not None:
            section, name = key.split(".")
            flags.setdefault(section, {})[name] = value
    if getattr(args, "no_ms", False):
        flags.setdefault("predict", {}).update(scales=(1.0,), add_max=False)
    return load_config([*files, *args.config], args.overrides, args.preset, flags, defaults)


def config_from(args: argparse.Namespace, change: Optional[Callable[[Config], Config]] = None,
                defaults: Optional[Mapping[str, Mapping[str, Any]]] = None) -> Config:
    """The configuration that a tool runs with: what parsed arguments ask for, as ``change`` leaves
    it, over a tool's own ``defaults``.

    Also sets the number of MXNet's threads that the devices need, so call it before anything that
    imports MXNet. With ``--print-config`` it prints the configuration and ends the process with
    code 0.

    Raises
    ------
    InputError
        Naming flag, key or file.
    """
    config = resolved(args, defaults=defaults)
    if change is not None:
        config = change(config)
    if args.print_config:
        print(describe(config))
        raise SystemExit(0)
    limit_threads(config.run.devices)
    if getattr(args, "num_cls", None) is not None:
        _check_num_cls(args.num_cls, config)
    return config


def named(args: argparse.Namespace, key: str) -> bool:
    """Whether the command line names a key of the configuration, by a flag or as ``section.key=value``."""
    return getattr(args, key, None) is not None or any(
        text.partition("=")[0].strip() == key for text in args.overrides)


def _refuse_two_values(overrides: Sequence[str]) -> None:
    written: Dict[str, str] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        if written.setdefault(key, value) != value:
            raise InputError(f"is given twice, as {written[key]!r} and as {value!r}", file="command line",
                             field=key, remedy="give it once")


def describe(config: Config) -> str:
    """The configuration as YAML, each key with its help, and the hash."""
    lines: List[str] = [f"# hash: {config.hash()}", f"preset: {config.preset}"]
    for section, kind in SECTIONS.items():
        lines.append(f"{section}:")
        for key in dataclasses.fields(kind):
            value = value_text(getattr(getattr(config, section), key.name))
            lines.append(f"  {key.name + ': ' + value:<32}  # {key.metadata['help']}")
    return "\n".join(lines)


def _check_num_cls(num_cls: int, config: Config) -> None:
    from cian.data.classes import load_classes
    have: Optional[int] = load_classes(config.data.classes).num_classes
    if have != num_cls:
        raise InputError(f"{num_cls} classes were announced, but the class list '{config.data.classes}' "
                         f"has {have} with background", field="--num-cls",
                         remedy="give the list with --classes FILE, background first")
