"""Any YAML gives a plan or one line: SOFTTOK_EXAMPLES=10 makes ten times as many examples of each test."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from softtok.config.grid import Grid
from softtok.config.load import load, read
from softtok.errors import UserError
from tests.support.configurations import BASIC
from tests.support.examples import examples
from tests.support.project import shipped

Key = str | int
SHIPPED = shipped()
HOSTILE_TEXTS = (
    *("010", "1:30", "1_000", ".inf", "-.NAN", "yes", "~", "2024-01-31", "1e10", "0x1f", "9" * 400, "-0", "+.5"),
    *(
        "&a",
        "*a",
        "&a [*a]",
        "{<<: *a}",
        "<<",
        "!!set {a}",
        "!!python/none x",
        "!x y",
        "? [a]",
        "- - - a",
        "=",
        "|",
        ">",
    ),
    *("{", "}", "[", "]", ":", ": ", ",", "#", "%TAG", "---", "...", "\t", "\x00", "\ufeff", "\u2028", "'", '"', "\\"),
    *(
        "\U0001f600",
        "а",
        "a" * 101,
        "../x",
        "x.py:f",
        "config.py:Config",
        "{y}",
        "[x]",
        "$(ls)",
        "`",
        "-",
        "--",
        "\x85",
    ),
)
WORDS = st.one_of(
    st.sampled_from(HOSTILE_TEXTS),
    st.text(max_size=8),
    st.sampled_from(
        ["hard", "soft", "toy", "sums", "demo", "like", "paper", "training", "tokens", "gsm8k", "six", "k"]
    ),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2, 3, 10**9, 10**10, 10**30, 2**63, -(2**63)]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-320, 1e300, 0.5]),
    WORDS,
    st.dates(),
    st.binary(max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.one_of(
        st.lists(below, max_size=4), st.dictionaries(st.one_of(WORDS, st.integers(), st.none()), below, max_size=4)
    ),
    max_leaves=8,
)


def comes_to(make: Callable[[], Grid]) -> str:
    """Returns "a plan" or the one line; any other exception is a failure, and so is more than one line."""
    try:
        grid = make()
    except UserError as error:
        message = str(error)
        assert message.isprintable(), message
        assert message.startswith("config: ")
        assert len(message) < 1500
        return message
    for study in grid.studies.values():
        assert study.json.isprintable() and study.spec_path
    event("a plan")
    return "a plan"


def places(value: Any, where: tuple[Key, ...] = ()) -> list[tuple[Key, ...]]:
    """Returns the key paths of everything in a configuration."""
    found = [where] if where else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*where, key))
    return found


PLACES = {name: places(config) for name, config in (("shipped", SHIPPED), ("small", yaml.safe_load(BASIC)))}


def value_at(config: Any, way: Sequence[Key]) -> Any:
    """Returns what is at a key path; None if an earlier change has removed it."""
    for key in way:
        try:
            config = config[key]
        except (KeyError, IndexError, TypeError):
            return None
    return config


NAMES = sorted({str(key) for known in PLACES.values() for way in known for key in way})


def near(value: Any) -> st.SearchStrategy[Any]:
    """Returns values of the same type, which are more often right, and then contradict others."""
    match value:
        case bool():
            return st.just(not value)
        case int():
            return st.one_of(st.integers(0, 12), st.sampled_from([value - 1, value + 1, value * 100]))
        case float():
            return st.sampled_from([0, 0.0, 0.5, 1.0, 2, value * 2, value / 100, "1e-3"])
        case str():
            return st.sampled_from([*NAMES, f"{value}2", value.upper(), value[:-1], "", "toy", "math", "exact"])
        case list():
            return st.lists(st.sampled_from(value), max_size=4) if value else st.just(["toy"])
        case _:
            return st.sampled_from([{}, None, []])


def change(data: st.DataObject, config: Any, known: list[tuple[Key, ...]]) -> None:
    """Changes a configuration at one of its places."""
    *way, last = data.draw(st.sampled_from(known))
    place: Any = value_at(config, way)
    if (value := value_at(config, (*way, last))) is None or isinstance(place, str):
        return
    what = data.draw(st.sampled_from(["near", "near", "near", "set", "drop", "rename", "add", "share"]))
    if what == "near":
        place[last] = data.draw(near(value))
    elif what == "set":
        place[last] = data.draw(VALUES)
    elif what == "drop":
        del place[last]
    elif what == "share":
        place[last] = value_at(config, data.draw(st.sampled_from(known)))  # not a copy: it may hold itself
    elif isinstance(place, list):
        place.append(value_at(config, (*way, last)))
    else:
        place[data.draw(WORDS)] = place.pop(last) if what == "rename" else data.draw(VALUES)


def mutated(data: st.DataObject, config: Any, known: list[tuple[Key, ...]]) -> Any:
    """Returns a copy of a configuration with a few changes."""
    config = copy.deepcopy(config)
    for _ in range(data.draw(st.integers(1, 3))):
        change(data, config, known)
    return config


def some(count: int) -> settings:
    """Returns the decorator of a test with `count` examples, which may share the fixture's folder."""
    return settings(examples(count), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@some(200)
@given(data=st.data())
def test_the_shipped_configuration_with_changes_is_a_plan_or_one_line(data: st.DataObject, somewhere: Path) -> None:
    config = mutated(data, SHIPPED, PLACES["shipped"])
    comes_to(lambda: Grid(load(config)))


@some(200)
@given(data=st.data())
def test_a_small_configuration_with_changes_is_a_plan_or_one_line(data: st.DataObject, somewhere: Path) -> None:
    config = mutated(data, yaml.safe_load(BASIC), PLACES["small"])
    comes_to(lambda: Grid(load(config)))


@some(200)
@given(data=st.data())
def test_a_small_file_with_changes_of_its_text_is_a_plan_or_one_line(data: st.DataObject, somewhere: Path) -> None:
    text = BASIC
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(WORDS) + text[end:]
    (somewhere / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    comes_to(lambda: Grid(read(somewhere / "config.yaml")))


@some(200)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        st.lists(st.one_of(WORDS, st.sampled_from(["\n", "  ", "a: ", "- ", "&a ", "*a "])), max_size=25).map(
            lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
        ),
        VALUES.map(lambda value: yaml.dump(value).encode("utf-8", "surrogatepass")),
    )
)
def test_any_bytes_are_one_line(content: bytes, somewhere: Path) -> None:
    (somewhere / "config.yaml").write_bytes(content)
    assert comes_to(lambda: Grid(read(somewhere / "config.yaml"))) != "a plan"


@some(200)
@given(data=st.data())
def test_files_over_each_other_are_a_plan_or_one_line(data: st.DataObject, somewhere: Path) -> None:
    """What `softtok check --config A B` reads, with every kind of alias that YAML writes."""
    files = [somewhere / name for name in ("a.yaml", "b.yaml")]
    files[0].write_text(BASIC)
    files[1].write_bytes(yaml.dump(mutated(data, yaml.safe_load(BASIC), PLACES["small"])).encode("utf-8", "replace"))
    comes_to(lambda: Grid(read(files)))


def test_a_file_over_another_changes_no_alias_of_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    shared = BASIC.replace(
        "training: {steps: 20, validation_problems: 8}", "training: &t {steps: 20, validation_problems: 8}"
    )
    first.write_text(shared + "training: *t\n")
    second.write_text("models: {toy: {training: {steps: 30}}}\n")
    config = read([first, second])
    assert (config.training.steps, config.models["toy"].training.steps) == (20, 30)
