"""Any file that calls itself a configuration is told in one line what is wrong with it, soon, and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.support.configurations import BASIC

READ_ALL = """
import json, resource, sys
from pathlib import Path
from softtok.config.grid import Grid
from softtok.config.load import read
from softtok.errors import UserError

limit = 3 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))  # for all files together; a loop without end is killed
for path in sorted(Path(sys.argv[1]).iterdir()):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        message = f"{len(Grid(read(path)).runs)} runs"
    except UserError as error:
        message = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    told = {"name": path.stem, "message": message, "grown_kb": grown}
    print(json.dumps(told), flush=True)
"""


def basic(old: str, new: str) -> str:
    """Returns the small configuration with one place changed."""
    assert BASIC.count(old) >= 1, old
    return BASIC.replace(old, new, 1)


def training(line: str) -> str:
    """Returns the small configuration with a setting of all runs."""
    return f"{BASIC}training: {{{line}}}\n"


def entries(section: str, lines: list[str]) -> str:
    """Returns the small configuration with further entries in a section."""
    return BASIC.replace(f"{section}:\n", f"{section}:\n" + "".join(f"  {line}\n" for line in lines), 1)


def laughs(levels: int, of_mappings: bool = False) -> str:
    """Returns a node of 9 ** levels leaves in a few lines."""
    lines = ["x0: &x0 {k: 1}" if of_mappings else "x0: &x0 [lol]"]
    for level in range(1, levels):
        below = ", ".join([f"*x{level - 1}"] * 9)
        lines.append(f"x{level}: &x{level} " + (f"{{<<: [{below}], k{level}: 1}}" if of_mappings else f"[{below}]"))
    return "\n".join(lines) + "\n"


CHAIN = ["m0: {tokens: hard}", *(f"m{n}: {{like: m{n - 1}}}" for n in range(1, 1500))]
HOSTILE: dict[str, tuple[str | bytes, list[str]]] = {
    # Nodes
    "a mapping that holds itself": (BASIC + "x: &x {y: *x}\n", ["config: x.y: this holds itself"]),
    "a list that holds itself": (BASIC + "x: &x [1, *x]\n", ["config: x[1]: this holds itself"]),
    "a section that holds itself": (basic("models:", "models: &m\n  me: *m"), ["models.me: this holds itself"]),
    "a merge with itself": (BASIC + "x: &x {<<: *x}\n", ["this holds itself"]),
    "two nodes that hold each other": (BASIC + "x: &x {y: &y {x: *x, y: 1}}\nz: *y\n", ["holds itself"]),
    "nested aliases": (laughs(9) + BASIC, ["more than 50,000 values"]),
    "nested merges": (laughs(9, of_mappings=True) + BASIC, ["more than 50,000 values"]),
    "900 nested maps": (BASIC + "x: " + "{a: " * 900 + "1" + "}" * 900, ["more than 50 levels deep"]),
    "100,000 nested lists": (BASIC + "x: " + "[" * 100_000, ["more than 50 levels deep"]),
    "900 indented maps": (BASIC + "".join(" " * n + "a:\n" for n in range(900)), ["more than 50 levels deep"]),
    "nested places of a list": (BASIC + "x:\n" + " " + "- " * 900 + "a\n", ["more than 50 levels deep"]),
    "60,000 values": (BASIC + "x: [" + "1, " * 60_000 + "]", ["more than 50,000 values"]),
    "200,000 values": (BASIC + "x: [" + "1, " * 200_000 + "]", ["too many values"]),
    "5 MB": (BASIC + "#" * 5_000_000, ["more than 1,000,000 bytes"]),
    "a mapping as a key": (BASIC + "? {a: 1}\n: 2\n", ["a key is a name, not a list or a mapping"]),
    "a list as a key of an entry": (entries("models", ["? [a]", ": {toy: {}}"]), ["models: a key is a name"]),
    "a tag of Python": (BASIC + "x: !!python/object/apply:os.system [ls]\n", ["!!python/object/apply:os.system"]),
    "a tag of one's own": (BASIC + "x: !mine 3\n", ["x: YAML reads '3' as !mine"]),
    "a set": (BASIC + "x: !!set {a, b}\n", ["x: a configuration has no !!set"]),
    "bytes": (BASIC + "x: !!binary aGk=\n", ["x: YAML reads 'aGk=' as !!binary"]),
    "a number by a tag": (training("steps: !!int abc"), ["training.steps: YAML reads 'abc' as a number"]),
    "two documents": (BASIC + "---\nrun: [other]\n", ["is not YAML: line", "document"]),
    "an alias to nothing": (BASIC + "x: *y\n", ["is not YAML: line", "undefined alias"]),
    "an equals sign": (basic("gold: {field: a}", "gold: {field: a, after: =}"), ["after: YAML reads '=' as !!value"]),
    # Values that YAML reads other than they look
    "octal": (training("steps: 010"), ["training.steps: YAML reads '010' as 8; write it in plain digits", "line 28"]),
    "octal in a list": (basic("seeds: [0]", "seeds: [0, 010]"), ["studies.first.seeds[1]: YAML reads '010'"]),
    "octal as text": (basic("    seeds", "    title: 010\n    seeds"), ["studies.first.title: YAML reads '010'"]),
    "octal as a name": (entries("models", ["010: {toy: {}}"]), ["models.010: YAML reads '010'", "in quotes"]),
    "new octal": (training("steps: 0o17"), ["training.steps", "0o17"]),
    "hexadecimal": (training("steps: 0x10"), ["training.steps: YAML reads '0x10'"]),
    "binary": (training("steps: 0b11"), ["training.steps: YAML reads '0b11'"]),
    "sexagesimal": (training("steps: 1:30"), ["training.steps: YAML reads '1:30' as 90; "]),
    "sexagesimal with a fraction": (training("learning_rate: 1:30.5"), ["training.learning_rate: YAML reads '1:30.5'"]),
    "a negative hour": (training("steps: -1:30"), ["'-1:30'"]),
    "underscores": (training("steps: 1_000"), ["training.steps: YAML reads '1_000'"]),
    "underscores and a point": (training("learning_rate: 1_0.5"), ["training.learning_rate: YAML reads '1_0.5'"]),
    "infinity": (training("learning_rate: .inf"), ["training.learning_rate: YAML reads '.inf'"]),
    "less than nothing": (training("reward_boxed: -.INF"), ["training.reward_boxed: YAML reads '-.INF'"]),
    "no number": (training("learning_rate: .nan"), ["training.learning_rate: YAML reads '.nan'"]),
    "too large for a float": (training("learning_rate: 1.0e+400"), ["training.learning_rate", "finite"]),
    "a huge number": (training("steps: " + "9" * 5000), ["training.steps: YAML reads '9999"]),
    "a large number": (training("steps: 10000000000"), ["training.steps", "less than or equal to 1000000000"]),
    "a large number in short": (training("steps: 1.0e+10"), ["training.steps", "integer"]),
    "yes for a number": (training("steps: yes"), ["training.steps", "True"]),
    "yes for text": (
        basic("question: q", "question: yes"),
        ["question: the value should be a valid string, not True: YAML reads it as bool; put"],
    ),
    "off as a name": (entries("training_modes", ["off: {tokens: hard}"]), ["YAML reads this name as bool False"]),
    "a date for text": (basic("question: q", "question: 2024-01-31"), ["YAML reads '2024-01-31' as a date", "quotes"]),
    "a day that is none": (basic("question: q", "question: 2024-99-99"), ["YAML reads '2024-99-99' as a date"]),
    "a time as a name": (entries("models", ["2024-01-31: {toy: {}}"]), ["models.2024-01-31: YAML reads"]),
    "a number for text": (
        basic("question: q", "question: 3"),
        ["question: the value should be a valid string, not 3: YAML reads it as int"],
    ),
    "null for text": (
        basic("split: test", "split: ~"),
        ["test_sets.local.hub.split: the value should be a valid string, not None"],
    ),
    "null as a name": (entries("models", ["~: {toy: {}}"]), ["YAML reads this name as NoneType"]),
    "a list for text": (
        basic("question: q", "question: [q]"),
        ["question: the value should be a valid string, not ['q']"],
    ),
    # Names and keys
    "a key twice": (BASIC + "run: [first]\n", ["config: run: this key appears twice", "lines 2 and"]),
    "a key twice below": (basic("{tokens: hard}", "{tokens: hard, tokens: soft}"), ["this key appears twice"]),
    "a number as a key": (basic("{tokens: hard}", "{tokens: hard, 3: 4}"), ["training_modes.hard"]),
    "a name too long": (entries("models", ["m" * 101 + ": {toy: {}}"]), ["has 101 characters; at most 100"]),
    "a name of 900 characters": (entries("models", [f"{'m' * 900}: {{toy: {{}}}}"]), ["has 900 characters"]),
    "a name of 60,000 characters": (
        entries("models", [f"? {'m' * 60_000}\n  : {{toy: {{}}}}"]),
        ["has 60000 characters"],
    ),
    "a list with a name too long": (basic("models: [toy]", f"models: [{'m' * 101}]"), ["has 101 characters"]),
    "a Cyrillic letter in a name": (entries("training_modes", ["hаrd2: {tokens: hard}"]), ["U+0430"]),
    "a Cyrillic letter in a key": (basic("{tokens: hard}", "{tоkens: hard}"), ["U+043E", "did you mean 'tokens'?"]),
    "a Cyrillic letter in a list": (basic("[hard, soft]", "[hаrd, soft]"), ["U+0430"]),
    "fullwidth digits": (entries("models", ["toy１: {toy: {}}"]), ["U+FF11"]),
    "names that differ in case": (entries("models", ["Toy: {toy: {}}"]), ["differ in letter case only"]),
    "a line break in a key": (BASIC + '"a\\nb": 1\n', [r"config: a\nb: unknown key"]),
    "an escape in a key": (BASIC + '"a\\e[31mb": 1\n', [r"config: a\x1b[31mb: unknown key"]),
    "text that turns around": (BASIC + '"a\\u202Eb": 1\n', [r"config: a\u202eb: unknown key"]),
    "a path in a name": (entries("models", ["../../toy: {toy: {}}"]), ["'../../toy' is not a name"]),
    # like:
    "like a number": (entries("training_modes", ["a: {like: 3}"]), ["a.like: takes the name of an entry, not 3"]),
    "like a list": (entries("training_modes", ["a: {like: [hard]}"]), ["a.like: takes the name of an entry"]),
    "like the truth": (entries("training_modes", ["a: {like: yes}"]), ["a.like: takes the name of an entry, not True"]),
    "a chain of 1,500": (entries("training_modes", CHAIN), ["more than 100 entries start from each other"]),
    "a chain of 1,500 from its end": (entries("training_modes", CHAIN[::-1]), ["more than 100 entries"]),
    "a circle of 1,500": (entries("training_modes", [*CHAIN[1:], "m0: {like: m1499}"]), ["is circular: "]),
    "many copies of a large entry": (
        entries(
            "training_modes",
            [f"m: {dict.fromkeys(map(str, range(900)), 1)}", *(f"m{n}: {{like: m}}" for n in range(900))],
        ),
        ["training_modes: more than 50,000 keys"],
    ),
    "like what is too long": (entries("training_modes", [f"a: {{like: {'b' * 5000}}}"]), ["there is no 'bbb"]),
    # Files
    "NUL": (BASIC.encode() + b"x: \x00\n", ["is not YAML"]),
    "NUL in text": (basic("question: q", 'question: "a\\0b"'), ["question: holds a character NUL"]),
    "a tab": (BASIC + "x:\n\ty: 1\n", ["is not YAML: line 29, column 1"]),
    "Latin-1": (BASIC.encode() + "# ö\n".encode("latin-1"), ["is not UTF-8; save the file as UTF-8"]),
    "UTF-16": (BASIC.encode("utf-16"), ["is not UTF-8; save the file as UTF-8"]),
    "half a character": ('x: "\\uD800"\n' + BASIC, ["is not YAML"]),
    "an empty file": (b"", ["has no settings"]),
    "a list": ("- a\n", ["has no settings"]),
    "binary rubbish": (bytes(range(256)) * 100, ["is not YAML"]),
    # Sizes
    "samples without end": (basic("samples: 4", "samples: 10000000000"), ["samples", "less than or equal to 100000"]),
    "samples in short": (basic("samples: 4", "samples: 1e10"), ["samples", "'1e10'"]),
    "negative samples": (basic("samples: 4", "samples: -4"), ["samples", "greater than or equal to 1, not -4"]),
    "steps without end": (training(f"steps: {10**9}, validate_every: 1, checkpoint_steps: [1, {10**9}]"), ["3 runs"]),
    "no samples": (basic("samples: 4", "samples: 0"), ["samples", "greater than or equal to 1, not 0"]),
    "half a sample": (basic("samples: 4", "samples: 4.5"), ["samples", "4.5"]),
    "negative seed": (basic("seeds: [0]", "seeds: [-1]"), ["studies.first.seeds[0]", "-1"]),
    "a huge seed": (basic("seeds: [0]", "seeds: [99999999999999999999]"), ["studies.first.seeds[0]"]),
    "a huge width": (basic("tokenizer: bpe", "tokenizer: bpe, width: 10000000"), ["width", "1000000,"]),
    "a huge temperature": (basic("temperature: 0.5", "temperature: 1.0e+300"), ["1000000"]),
    "a temperature below any float": (
        basic("temperature: 0.5", "temperature: 1.0e-300"),
        ["temperature: 1e-300 is too small"],
    ),
    "60,000 runs": (basic("seeds: [0]", f"seeds: {list(range(30_000))}"), ["more than 50,000 jobs"]),
    "a long list with a double": (basic("seeds: [0]", f"seeds: {[*range(40_000), 0]}"), ["0 is listed twice"]),
    # Folders
    "no data root": (BASIC + 'data_root: ""\n', ["config: data_root: is empty"]),
    "a data root of spaces": (BASIC + 'data_root: "  "\n', ["data_root: the folder ' ' does not exist"]),
    "a number for a data root": (BASIC + "data_root: 3\n", ["data_root: the value should be a valid string, not 3"]),
    "a data root of nobody": (BASIC + "data_root: ~nobody-of-that-name/x\n", ["data_root: the folder '~nobody"]),
    "a data root with NUL": (BASIC + 'data_root: "a\\0b"\n', ["data_root: holds a character NUL"]),
    "a long data root": (BASIC + f"data_root: {'a/' * 3000}\n", ["data_root: the folder 'a/a/"]),
    "a long part of a data root": (BASIC + f"data_root: {'a' * 3000}\n", ["data_root: the folder 'aaa"]),
    "a data root that is a file": (BASIC + "data_root: /etc/passwd\n", ["'/etc/passwd' is a file"]),
    "no model folder": (basic("toy: {tokenizer: bpe}", 'path: ""'), ["models.toy.path: is empty"]),
    "a model folder of nobody": (basic("toy: {tokenizer: bpe}", "path: ~nobody-of-that-name/x"), ["does not exist"]),
    "a long model folder": (basic("toy: {tokenizer: bpe}", f"path: {'a' * 3000}"), ["path: the folder 'aaa"]),
}


@dataclass(frozen=True)
class Told:
    """What reading a file came to."""

    name: str
    message: str
    grown_kb: int


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """What each file is told, all read by one process whose memory and CPU time have bounds."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (text, _) in HOSTILE.items():
        (folder / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    command = [sys.executable, "-c", READ_ALL, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [Told(**json.loads(line)) for line in done.stdout.splitlines()]
    return {one.name: one for one in found}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_one_line_soon_and_in_little_memory(name: str, told: dict[str, Told]) -> None:
    found = told[name]
    for fragment in HOSTILE[name][1]:
        assert fragment in found.message
    assert found.message.startswith("config: ") or found.message == "3 runs"
    assert found.message.isprintable()
    assert len(found.message) < 600
    assert found.grown_kb < 300_000
