"""Commands that let one look at what a model thinks and answers."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from softtok.commands.parser import PEOPLE, CommandLine, config_files, config_options, importing

if TYPE_CHECKING:
    from softtok.problems.terminal import Page


def add_thoughts(line: CommandLine) -> None:
    """Adds the commands that show thoughts and samples."""
    think = line.command(
        PEOPLE,
        "think",
        _think,
        "watch a model think about a question",
        [
            "softtok think smollm2 'What is 3 times 14?' --mode soft-sample --samples 4 --gold 42",
            "softtok think toy 'Maya has 6 coins. Gina takes 2. How many coins in the end?' --mode soft-greedy",
        ],
    )
    think.add_argument("subject", metavar="MODEL", help="a run's or a model's folder, a GGUF file, a name, a hub id")
    think.add_argument("question", metavar="QUESTION")
    think.add_argument("--mode", required=True, help="an inference or training mode of config.yaml")
    think.add_argument("--samples", type=int, default=1, metavar="N")
    think.add_argument("--top", type=int, default=5, metavar="N", help="tokens of each mixture that are shown")
    think.add_argument("--gold", action="append", default=[], metavar="TEXT", help="a right answer, for a verdict")
    think.add_argument("--cot-tokens", type=int, metavar="N", help="the longest CoT; default: as `evaluation:` has it")
    think.add_argument("--seed", type=int, default=0)
    config_options(think)
    sample = line.command(
        PEOPLE,
        "sample",
        _sample,
        "print questions, CoTs, answers and verdicts of a run",
        ["softtok sample results/runs/toy/sums/soft/seed0-1234abcd --test-set sums --mode soft-sample --wrong"],
    )
    sample.add_argument("run_folder", type=Path, metavar="RUN")
    sample.add_argument("--test-set", required=True, metavar="NAME")
    sample.add_argument("--mode", required=True, metavar="NAME", help="inference mode")
    sample.add_argument("--problem", metavar="ID", help="this problem alone")
    sample.add_argument("--wrong", action="store_true", help="wrong samples alone")
    sample.add_argument("--steps", action="store_true", help="the recorded soft steps in the place of the CoTs")
    sample.add_argument("--data", type=Path, metavar="FILE", help="its prepared test set, if not in the same results")
    compare = line.command(
        PEOPLE,
        "compare",
        _compare,
        "compare two runs: settings, metrics, problems that only one solves",
        ["softtok compare results/runs/toy/sums/hard/seed0-1234abcd results/runs/toy/sums/soft/seed0-5678abcd"],
    )
    compare.add_argument("run_folder", type=Path, metavar="RUN")
    compare.add_argument("other", type=Path, metavar="RUN")


def _page() -> Page:
    """Returns the layout of this terminal, or of plain text where the output is no terminal."""
    from softtok.problems.terminal import Page

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return Page(shutil.get_terminal_size().columns, colour)


def _think(options: argparse.Namespace) -> None:
    with importing():
        from softtok.evaluation.think import Wanted, thinking
    golds = tuple(options.gold)
    named = (options.samples, options.top, options.seed, options.cot_tokens)
    wanted = Wanted(options.question, options.mode, golds, *named)
    root = str(options.data_root) if options.data_root else None
    for text in thinking(options.subject, wanted, config_files(options), root, options.results, _page()):
        print(text, end="", flush=True)


def _sample(options: argparse.Namespace) -> None:
    from softtok.report.samples import Shown, sample_lines

    shown = Shown(options.problem, options.wrong, options.steps)
    for line in sample_lines(options.run_folder, options.test_set, options.mode, shown, _page(), options.data):
        print(line)


def _compare(options: argparse.Namespace) -> None:
    from softtok.report.compare import compare_lines

    for line in compare_lines(options.run_folder, options.other, _page()):
        print(line)
