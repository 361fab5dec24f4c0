"""The real files (SOFTTOK_TEST_DATA) through config.yaml's own entries: every row is accounted for."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from softtok.config.grid import Grid
from softtok.config.jobs import Data
from softtok.config.load import load
from softtok.problems import reward
from softtok.problems.answer_format import PAPER_FORMAT
from softtok.problems.prepare import prepare
from softtok.problems.prompt import normalise
from softtok.problems.prompting import Prompting, asking, read_shots
from softtok.problems.sources import sha256_of
from softtok.problems.spec import FileRows, Kind
from softtok.storage.files import file_sha256
from tests.support.project import shipped
from tests.support.specs import data_spec

Row = dict[str, Any]

SOURCE_ROWS: dict[tuple[Kind, str], int] = {
    ("test", "gsm8k"): 1319,
    ("test", "svamp"): 300,
    ("test", "math500"): 500,
    ("test", "olympiadbench"): 675,
    ("choice", "hellaswag"): 1000,
    ("choice", "arc"): 1056,
    ("choice", "mmlu"): 2156,
    ("train", "gsm8k"): 7473,
    ("train", "svamp"): 700,
    ("train", "math"): 12500,
    ("train", "math-7500"): 7500,
    ("train", "deepscaler"): 29896,
}
TEXT_ONLY = "parses only as a string, so nothing but the same text is right"
FLAGGED = {
    ("test", "olympiadbench"): [
        {"id": "1782", "reason": rf"gold 'm_{{\\max }}=n^{{2}}-n-1': {TEXT_ONLY}"},
        {"id": "2045", "reason": f"gold 't(0,4]': {TEXT_ONLY}"},
        {"id": "2255", "reason": "gold '62.5%': units, the answer '62.5' is wrong"},
        {"id": "2341", "reason": "gold '17.5%': units, the answer '17.5' is wrong"},
    ],
    ("choice", "mmlu"): [{"id": "row567", "reason": "two options are the same"}],
}
FORMS = {
    ("test", "gsm8k"): {"thousands separators": 14},
    ("test", "math500"): {"units": 19, "thousands separators": 2},
    ("test", "olympiadbench"): {"units": 7},
}
IN_MATH500 = {"row4841", "row5093", "row5249", "row5293"}  # of DeepScaleR
NO_GOLD = {f"train/number_theory/{number}.json" for number in (7115, 7117)}  # `\boxed{}`
BARE_BOXES = {"train/algebra/24014.json": ["2"], "train/algebra/25040.json": ["9"]}  # `\boxed 2` and `\boxed 9`


class Prepared:
    """The shipped sets as jobs on the real files; each is prepared when it is first asked for."""

    def __init__(self, data_root: Path, folder: Path) -> None:
        raw = shipped()
        self.grid = Grid(load(raw | {"data_root": str(data_root)}))
        self.data_root, self.folder = data_root, folder

    def data(self, kind: Kind, name: str) -> Data:
        return self.grid._data(kind, name)

    def path(self, kind: Kind, name: str) -> Path:
        data, out = self.data(kind, name), self.folder / kind / f"{name}.parquet"
        if not out.exists():
            exclude = {test_set.name: self.path("test", test_set.name) for test_set in data.exclude}
            prepare(data.spec, out, exclude, self.data_root)
        return out

    def __call__(self, kind: Kind, name: str) -> tuple[list[Row], Row]:
        """Returns (problems, manifest)."""
        path = self.path(kind, name)
        return pq.read_table(path).to_pylist(), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prepared(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(real_data, tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def unjudged(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """All golds count as right, which takes the minute from the large sets; what they must not overlap is judged."""
    sets = Prepared(prepared.data_root, tmp_path)
    for name in ("math500", "olympiadbench"):
        prepared.path("test", name)
    (tmp_path / "test").symlink_to(prepared.folder / "test")
    monkeypatch.setattr(reward.Judge, "check_golds", lambda self, golds: ["ok"] * len(golds))
    return sets


def check_books(sets: Prepared, kind: Kind, name: str) -> tuple[list[Row], list[Row], list[Row]]:
    """(problems, dropped, flagged), after checking what holds for every set."""
    problems, manifest = sets(kind, name)
    data, ids = sets.data(kind, name), [problem["id"] for problem in problems]
    dropped, flagged = manifest["dropped"], manifest["flagged"]
    assert manifest["source_rows"] == SOURCE_ROWS[kind, name] == len(problems) + len(dropped)
    assert manifest["rows"] == len(problems)
    assert len({*ids, *(row["id"] for row in dropped)}) == manifest["source_rows"], "every row has a name of its own"
    assert {row["id"] for row in flagged} <= set(ids)
    assert all(problem["question"].strip() == problem["question"] != "" for problem in problems)
    assert manifest["sha256"] == file_sha256(sets.path(kind, name))
    assert isinstance(data.spec.source, FileRows)
    digests = data.spec.source.sha256
    assert digests is not None
    assert manifest["source_sha256"] == (digests[0] if len(digests) == 1 else sha256_of(digests))
    return problems, dropped, flagged


@pytest.mark.parametrize(("kind", "name"), [key for key in SOURCE_ROWS if key[0] != "train"])
def test_a_test_or_choice_set_keeps_every_problem(prepared: Prepared, kind: Kind, name: str) -> None:
    problems, dropped, flagged = check_books(prepared, kind, name)
    assert dropped == []
    assert flagged == FLAGGED.get((kind, name), [])
    assert sets_forms(prepared, kind, name) == FORMS.get((kind, name), {})
    if kind == "choice":
        assert all(0 <= problem["answer"] < len(problem["choices"]) for problem in problems)
        assert all(option for problem in problems for option in problem["choices"])
        assert len({problem["answer"] for problem in problems}) >= 4, "answers are not all in one place"
    else:
        assert all(problem["gold"] and all(problem["gold"]) for problem in problems)


def test_gsm8k_is_used_whole(prepared: Prepared) -> None:
    problems, dropped, flagged = check_books(prepared, "train", "gsm8k")
    assert (dropped, flagged) == ([], [])
    assert sets_forms(prepared, "train", "gsm8k") == {"thousands separators": 79}
    assert all(gold.replace(",", "").replace(".", "").lstrip("-").isdecimal() for p in problems for gold in p["gold"])


def test_svamp_is_split_by_its_numbers_and_no_story_is_on_both_sides(prepared: Prepared, real_data: Path) -> None:
    """Numbers are all that many neighbours differ in, so 173 problems would have been trained on and tested."""
    tested, _ = prepared("test", "svamp")
    assert [problem["id"] for problem in tested] == [f"chal-{n}" for n in range(701, 1001)]
    problems, dropped, flagged = check_books(prepared, "train", "svamp")
    assert faults(dropped) == {"the story is in test set svamp": 173} and flagged == []
    order = [int(problem["id"].removeprefix("chal-")) for problem in problems]
    assert order == sorted(order) and len(order) == 527 and order[-1] <= 700
    source = {row["ID"]: row for row in json.loads((real_data / "svamp/SVAMP.json").read_text())}

    def story(problem: Row) -> str:
        return re.sub("[0-9]+", "n", "".join(source[problem["id"]]["Body"].lower().split()))

    stories = {story(problem) for problem in tested}
    assert not stories & {story(problem) for problem in problems} and {story(row) for row in dropped} <= stories
    for problem in (*tested, *problems):
        row = source[problem["id"]]
        assert problem["question"] == f"{row['Body']} {row['Question']}".strip()
        assert problem["gold"] == [str(int(row["Answer"]))], "51, not 51.0"


def test_the_first_problems_of_gsm8k_are_examples(prepared: Prepared, tmp_path: Path, real_data: Path) -> None:
    """With their solutions, the calculator's marks taken out, and the answer where the reward finds it."""
    raw = shipped() | {"data_root": str(real_data)}
    raw["test_sets"]["gsm8k-few"] |= {"shots": {"train_set": "gsm8k", "k": 8}}
    grid = Grid(load(raw))
    (few,) = {data.spec.as_json(): data for data in grid.data.values() if data.spec.shown}.values()
    prepare(few.spec, tmp_path / "few.parquet", {"gsm8k": prepared.path("test", "gsm8k")}, real_data)
    shots, (problems, _) = read_shots(tmp_path / "few.parquet"), prepared("train", "gsm8k")
    assert [(shot.question, [shot.answer]) for shot in shots] == [(p["question"], p["gold"]) for p in problems[:8]]
    assert (
        shots[0].worked
        == "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May."
    )
    asked = asking(Prompting(shots=list(shots)), Prompting(), PAPER_FORMAT)
    with reward.Judge(grading=reward.MATH) as judge:
        shown = [asked.solution(shot) for shot in shots]
        verdicts = judge.grade([reward.Answer(text, [shot.answer]) for text, shot in zip(shown, shots, strict=True)])
    assert all(verdict.correct for verdict in verdicts)
    assert not any("<<" in text or "####" in text for text in shown)


def test_math_without_math500_is_12_000(unjudged: Prepared) -> None:
    problems, dropped, _ = check_books(unjudged, "train", "math")
    assert {p["id"]: p["gold"] for p in problems if p["id"] in BARE_BOXES} == BARE_BOXES
    held_out, _ = unjudged("test", "math500")
    overlap = {row["id"] for row in dropped if row["reason"] == "the question is in test set math500"}
    assert overlap == {problem["id"] for problem in held_out}, "by their own names the very problems of MATH-500"
    assert 12500 - len(overlap) == 12000
    assert {row["id"]: row["reason"] for row in dropped if row["id"] not in overlap} == dict.fromkeys(
        NO_GOLD, "no gold"
    )
    assert len(dropped) == len(overlap) + len(NO_GOLD)


def test_math_7500_is_the_train_split(unjudged: Prepared) -> None:
    problems, dropped, _ = check_books(unjudged, "train", "math-7500")
    assert {row["id"] for row in dropped} == NO_GOLD
    assert all(problem["id"].startswith("train/") for problem in problems)


def test_deepscaler_holds_4_problems_of_math500(unjudged: Prepared) -> None:
    problems, dropped, flagged = check_books(unjudged, "train", "deepscaler")
    assert {row["id"]: row["reason"] for row in dropped} == dict.fromkeys(
        IN_MATH500, "the question is in test set math500"
    )
    held_out = {normalise(p["question"]) for name in ("math500", "olympiadbench") for p in unjudged("test", name)[0]}
    assert not held_out & {normalise(problem["question"]) for problem in problems}
    by_id = {problem["id"]: problem for problem in problems}
    twice = {row["id"]: found for row in flagged if (found := re.search("the question of (.*?) with", row["reason"]))}
    assert len(twice) == 185
    for row in flagged:
        if row["id"] not in twice:
            continue
        first = twice[row["id"]][1]
        assert normalise(by_id[first]["question"]) == normalise(by_id[row["id"]]["question"])
        assert by_id[first]["gold"] != by_id[row["id"]]["gold"]


def sets_forms(sets: Prepared, kind: Kind, name: str) -> dict[str, int]:
    """Returns how many problems of a set have a gold in an odd form, by its name."""
    _, manifest = sets(kind, name)
    forms: dict[str, int] = manifest.get("forms", {})
    return forms


def faults(dropped: list[Row]) -> Counter[str]:
    """Dropped rows by reason, without the golds themselves."""
    return Counter(row["reason"].rpartition(": ")[2] for row in dropped)


@pytest.mark.slow
def test_all_golds_of_math_are_judged(prepared: Prepared) -> None:
    problems, dropped, flagged = check_books(prepared, "train", "math")
    assert faults(dropped) == {
        "the question is in test set math500": 500,
        "no gold": 2,
        TEXT_ONLY: 9,
        "does not parse": 1,
    }
    assert len(problems) == 12000 - 12
    assert [row["id"] for row in flagged if "another gold" in row["reason"]] == ["train/algebra/2794.json"]
    assert len(flagged) < 0.01 * len(problems)


@pytest.mark.slow
def test_all_golds_of_deepscaler_are_judged(prepared: Prepared) -> None:
    problems, dropped, flagged = check_books(prepared, "train", "deepscaler")
    assert faults(dropped) == {"the question is in test set math500": 4, TEXT_ONLY: 38, "does not parse": 6}
    assert len(problems) == 29896 - 48
    assert len([row for row in flagged if "another gold" in row["reason"]]) == 182
    assert len(flagged) < 0.02 * len(problems)


@pytest.mark.parametrize(
    ("path", "mapping", "rows"),
    [
        ("deepscaler/aime.json", {"question": "problem", "gold": {"field": "answer"}}, 975),
        ("deepscaler/math.json", {"question": "problem", "gold": {"field": "answer"}}, 7474),
        (
            "deepscaler/dsr_sub.jsonl",
            {"id": "extra_info.index", "question": "prompt.0.content", "gold": {"field": "reward_model.ground_truth"}},
            1209,
        ),
        ("mmlu/dev/*.csv", {"question": "q", "choices": {"fields": list("ABCD")}, "answer": "r"}, 60),
    ],
)
def test_the_other_published_layouts_load(real_data: Path, tmp_path: Path, path: str, mapping: Row, rows: int) -> None:
    kind: Kind = "choice" if "choices" in mapping else "train"
    file: Row = {"path": path} | ({"columns": ["q", *"ABCD", "r"]} if path.endswith("csv") else {})
    spec = data_spec(kind, {"file": file}, limit=60, **mapping)
    prepare(spec, tmp_path / "set.parquet", {}, real_data)
    manifest = json.loads((tmp_path / "set.json").read_text(encoding="utf-8"))
    assert (manifest["source_rows"], manifest["rows"], manifest["dropped"]) == (rows, 60, [])
