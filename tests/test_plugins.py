"""Plug-ins: what is refused when the configuration is read, what a job loads, and how faults are told."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from softtok import plugins
from softtok.errors import UserError
from softtok.plugins import Door, Form, Reference

DOOR = Door(
    "reward",
    built_in=("math", "exact"),
    forms=(Form(("answer", "gold")), Form(("completions",), optional=("prompts",), open=True)),
)
CLASSES = Door("tokens", methods={"step": ("logits", "noise")})


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _python_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plug-in leaves on Python's path and among its modules goes with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_SIBLINGS", {})
    for name in ("helper", "tools"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def write(path: str, text: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def located(choice: str, door: Door = DOOR) -> Reference:
    found = plugins.locate(choice, door)
    assert isinstance(found, Reference)
    return found


def refused(choice: str, door: Door = DOOR) -> str:
    """The one line with which a choice is refused."""
    with pytest.raises(UserError) as caught:
        plugins.locate(choice, door)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def failure(reference: Reference) -> str:
    """The one line with which loading fails."""
    with pytest.raises(UserError) as caught:
        plugins.load(reference)
    assert "\n" not in str(caught.value)
    return str(caught.value)


GOOD = "def f(answer, gold):\n    return answer == gold\n"


class TestLocate:
    def test_a_built_in_name_stays_and_a_near_miss_is_named(self) -> None:
        assert plugins.locate("exact", DOOR) == "exact"
        assert "did you mean 'exact'?" in refused("exakt")

    def test_nothing_is_imported(self) -> None:
        write("mine.py", "raise SystemExit('imported')\n" + GOOD)
        assert located("mine.py:f").name == "f"

    def test_an_edit_is_another_reference_and_going_back_the_old_one(self) -> None:
        write("mine.py", GOOD)
        first = located("mine.py:f")
        write("mine.py", GOOD + "# edited\n")
        assert located("mine.py:f").sha256 != first.sha256
        write("mine.py", GOOD)
        assert located("mine.py:f") == first
        assert Reference.model_validate_json(first.model_dump_json()) == first

    def test_a_path_starts_at_the_configuration_and_is_kept_from_the_working_folder(self) -> None:
        write("project/code/mine.py", GOOD)
        found = plugins.locate("code/mine.py:f", DOOR, [Path("elsewhere"), Path("project").resolve()])
        assert isinstance(found, Reference)
        assert found.source == "project/code/mine.py"
        assert plugins.load(found)("a", "a")

    @pytest.mark.parametrize(
        ("choice", "text", "says"),
        [
            ("none.py:f", None, "no file 'none.py'"),
            ("mine.py", GOOD, "not possible"),
            ("mine.py:", GOOD, "not FILE.py:NAME"),
            ("mine.py:f.g", GOOD, "not FILE.py:NAME"),
            ("mine.txt:f", GOOD, "no module 'mine.txt'"),
            ("mine.py:g", GOOD, "defines no 'g'; it defines f"),
            ("mine.py:answer", GOOD, "defines no 'answer'"),
            ("mine.py:f", "def f(answer, gold:\n    pass\n", "mine.py, line 1: "),
            ("mine.py:f", "x = 1\n\ndef f(a, b):\n    pass\n", "mine.py, line 3: f(a, b) has other arguments"),
            ("mine.py:f", "def f(answer, gold, strict):\n    pass\n", "other arguments"),
            ("mine.py:f", "def f(answer, gold, /):\n    pass\n", "other arguments"),
            ("mine.py:f", "def f(*args):\n    pass\n", "other arguments"),
            ("mine.py:f", "async def f(answer, gold):\n    pass\n", "is an async function"),
            ("mine.py:f", "class f:\n    pass\n", "is a class"),
            ("mine.py:f", "f\0", "mine.py, line 1: "),
            ("mine.py:f", "", "it defines nothing"),
            ("mine.py:f", "f: int\n", "defines no 'f'"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, choice: str, text: str | None, says: str) -> None:
        if text is not None:
            write("mine.py", text)
        assert says in refused(choice)

    @pytest.mark.parametrize(
        "text",
        [
            "def f(gold, answer, strict=False, *, n=1):\n    pass\n",
            "def f(completions, **kwargs):\n    pass\n",
            "def f(prompts, completions, level, **kwargs):\n    pass\n",
            "def f(completions, gold):\n    pass\n",
            "f = lambda answer, gold: True\n",
            "from json import loads as f\n",
            "import json as f\n",
            "try:\n    import numpy\nexcept ImportError:\n    def f(answer, gold): pass\nelse:\n    f = 1\n",
            "import functools\n@functools.cache\ndef f(*a): pass\n",
        ],
    )
    def test_what_can_be_is_taken(self, text: str) -> None:
        write("mine.py", text)
        located("mine.py:f")

    def test_methods_of_a_class(self) -> None:
        write("mine.py", "class M:\n    def step(self, logits, noise): ...\nclass N(M): ...\nclass O: ...\n")
        assert located("mine.py:M", CLASSES).name == "M"
        assert located("mine.py:N", CLASSES).name == "N"
        assert "mine.py, line 4: class O has no method step" in refused("mine.py:O", CLASSES)
        write("mine.py", "class M:\n    def step(self, x): ...\n")
        assert "mine.py, line 2: M.step takes (self, x)" in refused("mine.py:M", CLASSES)
        write("mine.py", GOOD)
        assert "is a function; tokens takes a class" in refused("mine.py:f", CLASSES)

    def test_an_installed_module_is_found_without_its_parents(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write("site/pack/__init__.py", "raise ImportError('parent')\n")
        write("site/pack/deep.py", GOOD)
        monkeypatch.syspath_prepend("site")
        assert located("pack.deep:f").source == "pack.deep"
        assert "no module 'pack.none'" in refused("pack.none:f")
        assert "raises ImportError: parent while it is imported" in failure(located("pack.deep:f"))

    def test_an_installed_module_may_import_relatively(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write("site/packed/__init__.py", "")
        write("site/packed/one.py", GOOD)
        write("site/packed/two.py", "from .one import f\n")
        monkeypatch.syspath_prepend("site")
        assert plugins.load(located("packed.two:f"))("a", "a")


class TestLoad:
    def test_a_changed_file_is_refused(self) -> None:
        write("mine.py", GOOD)
        reference = located("mine.py:f")
        write("mine.py", GOOD + " ")
        assert "mine.py has changed since the configuration was read" in failure(reference)
        Path("mine.py").unlink()
        assert "mine.py cannot be read" in failure(reference)

    def test_what_runs_is_what_was_hashed_though_size_and_time_are_the_same(self) -> None:
        for value in ("1", "2"):
            file = write("mine.py", f"def f(answer, gold):\n    return {value}\n")
            os.utime(file, (1_000_000_000, 1_000_000_000))
            assert plugins.load(located("mine.py:f"))("a", "b") == int(value)
        assert not list(Path().rglob("*.pyc"))

    def test_an_edit_during_a_job_changes_nothing_in_it(self) -> None:
        write("mine.py", GOOD)
        plugin = plugins.read(located("mine.py:f"))
        write("mine.py", "raise ValueError\n")
        assert pickle.loads(pickle.dumps(plugin)).load()("a", "a") is True

    def test_dataclasses_and_pickle_work_in_it(self) -> None:
        write(
            "mine.py",
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "@dataclass\nclass P:\n    x: int\ndef f(answer, gold):\n    return P(1)\n",
        )
        made = plugins.load(located("mine.py:f"))("a", "b")
        assert pickle.loads(pickle.dumps(made)) == made

    def test_names_of_one_file_share_its_module(self) -> None:
        write("mine.py", "calls = []\n" + GOOD + "def g(answer, gold): ...\n")
        f, g = plugins.load(located("mine.py:f")), plugins.load(located("mine.py:g"))
        assert f.__globals__ is g.__globals__

    def test_two_files_of_one_name_and_their_neighbours(self) -> None:
        """Both import a neighbour of the same name; each gets its own, at import and again."""
        for folder in ("a", "b"):
            write(f"{folder}/helper.py", f"NAME = {folder!r}\n")
            write(f"{folder}/tools/__init__.py", "from tools.inner import NAME\n")
            write(f"{folder}/tools/inner.py", f"NAME = {folder!r}\n")
            text = "import helper, tools, tools.inner as t\ndef f(answer, gold):\n    return helper.NAME + tools.NAME\n"
            write(f"{folder}/mine.py", text)
            write(f"{folder}/more.py", text + "\n")
        found = [plugins.load(located(f"{file}.py:f"))("", "") for file in ("a/mine", "b/mine", "a/more", "b/more")]
        assert found == ["aa", "bb", "aa", "bb"]

    def test_packages_below_the_folder_are_no_neighbours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An environment inside of the project: its modules stay, whichever folder is loaded next."""
        write("env/helper.py", "")
        monkeypatch.setattr(sys, "path", [*sys.path, str(Path("env").resolve())])
        write("mine.py", "import helper\n" + GOOD)
        write("other/mine.py", GOOD)
        plugins.load(located("mine.py:f"))
        module = sys.modules["helper"]
        plugins.load(located("other/mine.py:f"))
        assert sys.modules.get("helper") is module

    def test_imports_inside_functions_find_neighbours_later(self) -> None:
        write("sub/helper.py", "NAME = 'here'\n")
        write("sub/mine.py", "def f(answer, gold):\n    import helper\n    return helper.NAME\n")
        assert plugins.load(located("sub/mine.py:f"))("", "") == "here"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("import nothing_of_that_name\n", "mine.py, line 1: f raises ModuleNotFoundError: No module named"),
            ("\n\n1 / 0\n", "mine.py, line 3: f raises ZeroDivisionError: division by zero while it is imported"),
            ("import sys\nsys.exit(3)\n", "mine.py, line 2: f raises SystemExit: 3"),
            ("import helper\n", "mine.py, line 1: f raises SyntaxError"),
            ("def g():\n    raise ValueError('two\\nlines')\ng()\n", "mine.py, line 2: f raises ValueError: two lines"),
            ("import sys\nsys.setrecursionlimit(200)\ndef g(): g()\ng()\n", "raises RecursionError"),
        ],
    )
    def test_what_fails_at_import_is_one_line_with_its_place(self, text: str, says: str) -> None:
        limit = sys.getrecursionlimit()
        write("helper.py", "def (\n")
        write("mine.py", text + GOOD)
        try:
            assert says in failure(located("mine.py:f"))
        finally:
            sys.setrecursionlimit(limit)
        assert not [name for name in sys.modules if name.startswith("softtok_plugin") and "mine" in name]

    def test_a_failed_import_is_tried_again(self) -> None:
        write("mine.py", "import os\nif 'GO' not in os.environ:\n    raise ValueError\n" + GOOD)
        reference = located("mine.py:f")
        failure(reference)
        os.environ["GO"] = "1"
        try:
            assert plugins.load(reference)("a", "a")
        finally:
            del os.environ["GO"]

    def test_a_file_that_forks_leaves_one_process(self) -> None:
        write("mine.py", "import os\nos.fork()\n" + GOOD)
        reference = located("mine.py:f")
        script = (
            "import sys; from softtok import plugins\n"
            "plugins.load(plugins.Reference.model_validate_json(sys.argv[1])); print('on', flush=True)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, reference.model_dump_json()], capture_output=True, text=True, check=True
        )
        assert run.stdout == "on\n"


class TestBlame:
    def test_the_last_line_of_the_users_own_file_is_named(self) -> None:
        write(
            "mine.py", "import json\n\ndef g(x):\n    return json.loads(x)\n\ndef f(answer, gold):\n    return g('{')\n"
        )
        plugin = plugins.read(located("mine.py:f"))
        f = plugin.load()
        with pytest.raises(UserError) as caught, plugins.blaming(plugin, "on the example"):
            f("", "")
        assert "mine.py, line 4: f raises JSONDecodeError: " in str(caught.value)
        assert str(caught.value).endswith(" on the example")
        assert "\n" not in str(caught.value)

    def test_a_fault_without_exception_names_the_definition(self) -> None:
        write("mine.py", "\n\n" + GOOD)
        assert str(plugins.read(located("mine.py:f")).fault("is odd")) == "mine.py, line 3: f is odd"

    def test_numbers(self) -> None:
        import numpy as np
        import torch

        write("mine.py", GOOD)
        plugin = plugins.read(located("mine.py:f"))
        numbers: list[object] = [1, 1.0, np.float32(1), np.int64(1), torch.tensor(1.0), np.array([1.0])]
        truths: list[object] = [True, np.bool_(True), torch.tensor(True)]
        others: list[object] = [None, "1", float("nan"), float("inf"), np.array([1.0, 2.0]), [1.0], 1j]
        for value in numbers:
            number = plugins.number(plugin, value, "")
            assert (number, type(number)) == (1.0, float)
        for value in truths:
            assert plugins.number(plugin, value, "") is True
        for value in others:
            with pytest.raises(UserError, match=r"mine\.py, line 1: f returns "):
                plugins.number(plugin, value, "")


def test_it_is_light() -> None:
    script = (
        "import sys, softtok.plugins; print([m for m in ('torch', 'numpy', 'softtok.problems') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
