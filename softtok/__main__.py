"""The command line. Every job of the workflow is one of these commands and can be run by hand.

Heavy imports are inside the commands, so that `softtok --help` and light jobs start at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from softtok.commands.jobs import add_jobs
from softtok.commands.parser import MUST_EXIST, CommandLine
from softtok.commands.planning import add_planning
from softtok.commands.results import add_results
from softtok.errors import UserError
from softtok.storage.trouble import storage_trouble

EXIT_CTRL_C = 130  # as a shell reports a command that Ctrl-C ended
ALLOCATORS = {
    "THP_MEM_ALLOC_ENABLE": "1",  # CPU: huge pages, which make a step 7 % faster
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # GPU: no fragmentation by tensors of many sizes
}
"""Settings that PyTorch reads once, when it is imported or first allocates memory."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status, 1 for an error that the user can fix, which is printed in one line."""
    options = command_line().parse_args(arguments)
    for name, value in ALLOCATORS.items():
        os.environ.setdefault(name, value)
    try:
        for name in MUST_EXIST:
            if (path := getattr(options, name, None)) is not None and not path.exists():
                raise UserError(f"{path} does not exist; snakemake makes it")
        options.run(options)
        sys.stdout.flush()  # on a full disk it fails here, and not after the end
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `softtok show demo | head`
    except KeyboardInterrupt:
        _tell("interrupted")
        return EXIT_CTRL_C
    except Exception as error:
        told = _explained(error, getattr(options, "out", None))
        if told is None:
            raise
        _tell(f"error: {told}")
        return 1
    return 0


def _explained(error: Exception, out: Path | None) -> str | None:
    """Returns what a user reads of an error that has a cause outside of the code; None for any other.

    `out` is where a command writes.
    """
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which light commands do not import
        why = " ".join(str(error).split(". ")[0].split())
        less = "lower rollout_tokens or rollout_rows (in training: micro_batch_tokens) under runtime"
        return f"{why}; {less}, or move the optimizer (optimizer_device: cpu)"
    return storage_trouble(error, out)


def _tell(text: str) -> None:
    """Prints a line to stderr. Where that is a file on a full disk, the line is lost, and the exit status remains."""
    with contextlib.suppress(OSError):
        print(f"softtok: {text}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at the end, and exit with a status of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def command_line() -> CommandLine:
    """Returns the parser of all commands, for the order of its help."""
    line = CommandLine()
    for add in (add_planning, add_results, add_jobs):
        add(line)
    return line


if __name__ == "__main__":
    sys.exit(main())
