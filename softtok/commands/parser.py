"""How the command line reads: its commands in two groups, each with examples, and the options that they share."""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import fill, indent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softtok.config.settings import RuntimeSettings

PEOPLE, JOBS = "for people", "for jobs"
WIDTH = 78
MUST_EXIST = ("model", "run_folder", "data", "shots")
"""Options that name what an earlier job of the workflow makes."""


class CommandLine(argparse.ArgumentParser):
    """The parser of `softtok`, whose help lists the commands by group."""

    def __init__(self) -> None:
        super().__init__(prog="softtok", description="Reinforcement learning with soft, fuzzy and hard CoT tokens.")
        self.add_argument("--version", action=_Version, help="print the version")
        self._commands = self.add_subparsers(metavar="COMMAND", parser_class=argparse.ArgumentParser)
        self._groups: dict[str, list[tuple[str, str]]] = {PEOPLE: [], JOBS: []}
        self.set_defaults(run=lambda _: print(self.format_help(), end=""))

    def command(
        self, group: str, name: str, run: Callable[[argparse.Namespace], None], text: str, examples: Sequence[str]
    ) -> argparse.ArgumentParser:
        """Adds a command: what it does in one line, and lines that show how it is called."""
        self._groups[group].append((name, text))
        shown = indent("\n".join(examples), "  ")
        parser = self._commands.add_parser(
            name,
            description=fill(text, WIDTH),
            epilog=f"example{'s' * (len(examples) > 1)}:\n{shown}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run, examples=examples)
        return parser

    def format_help(self) -> str:
        """Returns the screen of `softtok` alone."""
        lines = ["usage: softtok [--version] COMMAND ...", "", str(self.description)]
        width = max(len(name) for listed in self._groups.values() for name, _ in listed) + 4
        for group, listed in self._groups.items():
            lines += ["", f"{group}:"]
            for name, text in listed:
                lines.append(fill(f"  {name:<{width - 2}}{text}", WIDTH, subsequent_indent=" " * width))
        lines += ["", "`softtok COMMAND --help` tells more, with examples."]
        return "\n".join(lines) + "\n"

    @property
    def names(self) -> list[str]:
        """The names of all commands."""
        return [name for listed in self._groups.values() for name, _ in listed]


class _Version(argparse.Action):
    """Prints the version of the installed package, which is looked up then only."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"softtok {version('softtok')}")
        parser.exit()


def spec_option(command: argparse.ArgumentParser, *names: str) -> None:
    """Adds required options that take a record: a file of JSON, or the JSON itself."""
    for name in names:
        command.add_argument(f"--{name}", required=True, metavar="FILE|JSON", help="a file of JSON, or the JSON itself")


def path_option(command: argparse.ArgumentParser, *names: str) -> None:
    """Adds required options that name a file or folder."""
    for name in names:
        place = "run_folder" if name == "run" else name  # `run` is the command itself
        command.add_argument(f"--{name}", required=True, type=Path, dest=place, metavar="PATH")


def config_options(command: argparse.ArgumentParser, results: bool = True) -> None:
    """Adds the options of commands that read config.yaml; `results`: and the folder of results."""
    command.add_argument(
        "--config",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="of several, a later one overrides an earlier one, as in `snakemake --configfile`; default: those with"
        " which the workflow last began the study, else config.yaml",
    )
    command.add_argument(
        "--data-root", type=folder, metavar="PATH", help="as in `snakemake --config data_root=PATH`; same default"
    )
    if results:
        results_option(command)


def config_files(options: argparse.Namespace, study: str | None = None) -> list[Path]:
    """Returns the configuration files of a command: those given, or else those that the study was last begun with."""
    if options.config is not None:
        return list(options.config)
    from softtok.config.calls import files_of

    return files_of(getattr(options, "results", Path("results")), study)


def results_option(command: argparse.ArgumentParser) -> None:
    """Adds the option that names the folder of results."""
    command.add_argument("--results", type=Path, default=Path("results"), metavar="PATH")


def folder(text: str) -> Path:
    """Returns the folder that an option names; an empty name would mean the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder, or leave the option out")
    return Path(text)


def positive(text: str) -> float:
    """Returns the positive number that an option gives."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("is not a positive number")
    return number


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Switches garbage collection off during imports; a spec is read first, so that a wrong one fails at once.

    PyTorch and transformers make a million permanent objects. Garbage collection would look through them again and
    again, which takes a fifth of a job's start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def runtime_of(options: argparse.Namespace) -> RuntimeSettings:
    """Returns the machine settings of this job; PyTorch gets the configured threads, not all cores."""
    from softtok.config.settings import RuntimeSettings
    from softtok.config.specs import parse
    from softtok.models.devices import use_threads

    runtime = parse(RuntimeSettings, options.runtime, "runtime")
    use_threads(runtime)
    return runtime
