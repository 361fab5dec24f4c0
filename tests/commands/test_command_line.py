"""The command line: its help, its version, and the examples that it shows."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import pytest

from softtok.__main__ import command_line, main

ROOT = Path(__file__).parents[2]
NAMES = command_line().names


def test_without_a_command_the_help_is_printed_in_two_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    people, jobs = shown.split("for people:")[1].split("for jobs:")
    assert "  check " in people and "  estimate " in people and "  train " not in people
    assert "  train " in jobs and "  evaluate " in jobs and "  check " not in jobs
    assert max(map(len, shown.splitlines())) <= 80
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == shown


def test_every_command_is_listed_once() -> None:
    shown = command_line().format_help()
    assert len(set(NAMES)) == len(NAMES)
    for name in NAMES:
        assert sum(line.startswith(f"  {name} ") for line in shown.splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_command_are_valid_and_fit_a_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    examples = [line.strip() for line in shown.split("\nexample")[1].splitlines()[1:]]
    assert examples
    for example in examples:
        words = shlex.split(example.split(" > ")[0].split(" | ")[0])
        assert words[:2] == ["softtok", name]
        assert command_line().parse_args(words[1:]).run.__module__.startswith("softtok.commands.")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert capsys.readouterr().out == f"softtok {told}\n"


def test_a_wrong_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    assert "'train'" in capsys.readouterr().err
