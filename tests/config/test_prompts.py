"""Prompts in config.yaml: what they change, what they are made from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from softtok.config.grid import Grid
from softtok.config.load import load, read
from softtok.config.prompt_trials import try_prompts
from softtok.config.specs import parse
from softtok.errors import UserError
from softtok.problems.prepare import prepare
from softtok.problems.preview import Writer
from softtok.problems.prompting import Asking, Shot, read_shots
from softtok.problems.spec import DataSpec
from tests.support.configurations import Edit, basic, both, grid_of, hashes, put
from tests.support.project import ROOT

NEW_KEYS = {"prompting", "story", "worked", "ids"}
FEW = {"train_set": "sums", "k": 3}
LISTED = [{"question": "What is 1 + 1?", "worked": "1 + 1 = 2.", "answer": "2"}]
MODEL, TRAIN, TEST = "models/toy", "train_sets/sums", "test_sets/sums"


def keys(value: Any) -> set[str]:
    """All keys in JSON."""
    if isinstance(value, dict):
        return set(value) | {key for below in value.values() for key in keys(below)}
    return {key for below in value for key in keys(below)} if isinstance(value, list) else set()


def changed(*edits: Edit) -> set[str]:
    """Returns the kinds of jobs that edits change."""
    before, after = hashes(grid_of()), hashes(grid_of(*edits))
    return {kind for kind in before if not before[kind] <= after[kind]}


def test_configurations_without_the_new_keys_have_the_specs_of_before() -> None:
    """Keys that are not used are not written, so that finished work is found under its name."""
    config = read([ROOT / "config.yaml", ROOT / "workflow/rehearsal.yaml"])
    shipped = Grid(config)
    asked = {name for name, model in config.models.items() if model.shots}
    assert asked == {"smollm2", "smollm2-hub"}
    for kind in ("models", "runs", "evaluations", "choices"):
        for job in getattr(shipped, kind).values():
            if (job.name if kind == "models" else job.folder.split("/")[2] if kind == "runs" else "") in asked:
                continue
            data = [getattr(job.spec, name, None) for name in ("train_set", "test_set")]
            if not any(one is not None and one.ids for one in data):
                assert not NEW_KEYS & keys(json.loads(job.json)), job.json
    assert not NEW_KEYS & {key for job in grid_of().data.values() for key in keys(json.loads(job.json))}


@pytest.mark.parametrize(
    ("key", "value"),
    [("shots", FEW), ("shots", LISTED), ("shots", []), ("system", "Think."), ("prompt", "P: {question}")],
)
def test_a_prompt_changes_the_jobs_that_read_it_and_no_others(key: str, value: Any) -> None:
    assert changed(put(f"{TRAIN}/{key}", value)) == {"runs"}
    assert changed(put(f"{TEST}/{key}", value)) == {"evaluations"}
    assert changed(put(f"{MODEL}/{key}", value)) == {"models", "runs"}


def test_where_solutions_are_changes_nothing_but_the_examples(tmp_path: Path) -> None:
    trained = put("studies/first/grid", [{"models": ["toy"], "train_sets": ["sums", "mine"]}])
    shown = put(f"{TEST}/shots", {"train_set": "mine", "k": 1})
    file = both(put("train_sets/mine", entry(tmp_path)), shown, trained)
    one, other = grid_of(file), grid_of(file, put("train_sets/mine/worked/field", "a"))
    assert hashes(one)["runs"] == hashes(other)["runs"]
    assert hashes(one)["evaluations"].isdisjoint(hashes(other)["evaluations"])
    assert sorted(data.spec.shown for data in one.data.values() if data.name == "mine") == [False, True]


def entry(folder: Path) -> dict[str, Any]:
    """A train set in a file of the folder, and its entry."""
    rows = [{"q": f"What is {n} + {n}?", "a": f"{n} + {n} = {2 * n}. #### {2 * n}", "w": "Add."} for n in range(9)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = {"path": str(folder / "mine.jsonl")}
    return {"file": file, "question": "q", "gold": {"field": "a", "after": "####"}, "worked": {"field": "w"}}


@pytest.mark.parametrize("of_model", [None, FEW, LISTED, []])
@pytest.mark.parametrize("of_set", [None, {"train_set": "sums", "k": 2}, LISTED, []])
def test_a_job_is_given_the_examples_of_its_data_set_or_else_of_the_model(of_model: Any, of_set: Any) -> None:
    edits = [put(f"{MODEL}/shots", of_model)] if of_model is not None else []
    edits += [put(f"{place}/shots", of_set) for place in (TRAIN, TEST)] if of_set is not None else []
    grid = grid_of(*edits)
    counts = of_model if of_set is None else of_set
    wanted = counts["k"] if isinstance(counts, dict) else None
    run = next(run for run in grid.runs.values() if run.train_set)
    (evaluation,) = grid.evaluations.values()
    for paths in (run.shots_path, evaluation.shots_path(run.model)):
        limits = [data.spec.limit for data in grid.data.values() if data.path in paths]
        assert limits == ([] if wanted is None else [wanted])


def test_the_spec_of_examples_is_told_to_the_job_as_it_is() -> None:
    grid = grid_of(put(f"{TEST}/shots", FEW), put(f"{MODEL}/shots", LISTED))
    (evaluation,) = grid.evaluations.values()
    (model,) = grid.models.values()
    for job in (evaluation, model):
        assert parse(type(job.spec), job.json) == job.spec
    assert evaluation.spec.prompting is not None and isinstance(evaluation.spec.prompting.shots, DataSpec)
    assert model.spec.asks.shots == [Shot(**LISTED[0])]
    assert model.spec.asks.prompt == "Q: {question} A:"


def test_examples_of_toys_are_the_first_problems_of_the_train_set(tmp_path: Path) -> None:
    grid = grid_of(put(f"{TEST}/shots", FEW))
    whole, few = (next(d for d in grid.data.values() if d.spec.limit == k and d.kind == "train") for k in (None, 3))
    tested = next(data for data in grid.data.values() if data.kind == "test")
    prepare(tested.spec, tmp_path / "test.parquet", {}, None)
    for name, data in (("whole", whole), ("few", few)):
        prepare(data.spec, tmp_path / f"{name}.parquet", {"sums": tmp_path / "test.parquet"}, None)
    shots = read_shots(tmp_path / "few.parquet")
    problems = pq.read_table(tmp_path / "whole.parquet").to_pylist()
    assert [(shot.question, shot.answer) for shot in shots] == [(p["question"], p["gold"][0]) for p in problems[:3]]
    assert all(shot.worked.endswith(f"= {shot.answer}.") for shot in shots)
    assert "worked" not in problems[0]


CHOICE = "choice_sets/words/"
WRONG: dict[str, tuple[Edit, str]] = {
    "no such train set": (
        put(f"{TEST}/shots", {"train_set": "sum", "k": 1}),
        "test_sets.sums.shots.train_set: .*'sums'",
    ),
    "more examples than problems": (
        both(put(f"{TEST}/shots", {"train_set": "sums", "k": 5}), put(f"{TRAIN}/limit", 4)),
        "test_sets.sums.shots.k: 5 are more than the 4 problems of train set 'sums'",
    ),
    "no examples": (put(f"{TEST}/shots", {"train_set": "sums", "k": 0}), "test_sets.sums.shots.k: "),
    "a misspelt key of a set": (
        put(f"{TEST}/shots", {"train_sets": "sums", "k": 1}),
        "test_sets.sums.shots.train_sets: unk",
    ),
    "a misspelt key of an example": (
        put(f"{TEST}/shots", [{"question": "x", "anser": "1"}]),
        r"test_sets.sums.shots\[0\].anser: u",
    ),
    "an empty answer": (put(f"{TEST}/shots", [{"question": "x", "answer": ""}]), r"test_sets.sums.shots\[0\].answer: "),
    "neither a list nor a set": (put(f"{TEST}/shots", 5), "test_sets.sums.shots: 5 stands here; .*train_set, k"),
    "an empty system text": (put(f"{TEST}/system", ""), "test_sets.sums.system: is empty"),
    "a template without a question": (put(f"{TEST}/prompt", "Q:"), "test_sets.sums.prompt: .*exactly once"),
    "a chat with a toy": (put(f"{TEST}/chat_template", True), "test_sets.sums.chat_template: model 'toy' is a toy"),
    "a toy with a chat": (put(f"{MODEL}/chat_template", True), "models.toy.chat_template: a toy has none"),
    "prompts of multiple choice": (put(f"{CHOICE}system", "x"), "choice_sets.words.system: unknown key"),
    "worked text of a test set": (put("test_sets/local/worked", {"field": "a"}), "test_sets.local.worked: has no use"),
    "ids of a toy": (put(f"{TRAIN}/ids", ["a-1", "a-2"]), "train_sets.sums.ids: has no use beside `toy`"),
    "ids without a field": (put("test_sets/local/ids", ["a-1", "a-2"]), "test_sets.local.ids: needs `id:`"),
    "ids backwards": (put("test_sets/local/ids", ["a-2", "a-1"]), "test_sets.local.ids: .*first and a last id"),
    "ids of two kinds": (put("test_sets/local/ids", ["a-1", "b-2"]), "test_sets.local.ids: .*first and a last id"),
    "one id": (put("test_sets/local/ids", ["a-1"]), "test_sets.local.ids: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(case: str) -> None:
    edit, words = WRONG[case]
    config = basic()
    edit(config)
    with pytest.raises(UserError, match=f"^config: {words}") as caught:
        load(config)
    assert "\n" not in str(caught.value)


def test_a_set_without_worked_text_gives_no_examples(tmp_path: Path) -> None:
    bare = entry(tmp_path) | {"gold": {"field": "a", "before": " ="}}
    del bare["worked"]
    edits = put("train_sets/mine", bare), put(f"{TEST}/shots", {"train_set": "mine", "k": 1})
    with pytest.raises(
        UserError, match=r"test_sets.sums.shots.train_set: .*'mine' has no worked text; .*worked: {field"
    ):
        grid_of(*edits)
    grid_of(*edits, put("train_sets/mine/gold", {"field": "a", "after": "####"}))


def test_a_toy_of_words_reads_no_examples_and_no_instruction() -> None:
    words = put(f"{MODEL}/toy", {})
    grid_of(words, put(f"{MODEL}/shots", FEW), *(put(f"{place}/shots", []) for place in (TRAIN, TEST)))
    for edit, where in (
        (put(f"{TEST}/shots", FEW), "test_sets.sums.shots"),
        (put(f"{TEST}/shots", LISTED), "test_sets.sums.shots"),
        (put(f"{MODEL}/system", "Think."), "models.toy.system"),
    ):
        with pytest.raises(UserError, match=f"{where}: model 'toy' knows the words of toy problems only"):
            grid_of(words, edit)


def tried(*edits: Edit, writer: Writer | None = None) -> list[str]:
    """What `softtok check` says of the prompts of the small study."""
    grid = grid_of(*edits)
    return list(try_prompts(grid, grid.studies["first"], lambda _: writer))


def test_prompts_are_tried_before_any_job(tmp_path: Path) -> None:
    """With the examples that they will have, once for each model and data set that says how it is asked."""
    seen: list[tuple[Asking, str]] = []

    def writer(asked: Asking, question: str) -> tuple[str, list[int]]:
        seen.append((asked, question))
        return question, [1]

    few = both(put(f"{TEST}/shots", {"train_set": "mine", "k": 2}), put("train_sets/mine", entry(tmp_path)))
    assert tried(few, writer=writer) == ["prompts of test set sums for model toy: work"]
    ((asked, _),) = seen
    assert [shot.worked for shot in asked.shots] == ["Add.", "Add."]
    assert tried(few) == ["prompts of test set sums for model toy: work, as far as this is known without the tokenizer"]
    assert len(tried(put(f"{MODEL}/system", "Think."))) == 2
    assert tried() == [], "a template of a model is tried when the model is made"


def test_an_example_that_is_a_test_question_is_found_before_any_job(tmp_path: Path) -> None:
    config = grid_of()
    tested = next(data for data in config.data.values() if data.kind == "test")
    prepare(tested.spec, tmp_path / "test.parquet", {}, None)
    question = pq.read_table(tmp_path / "test.parquet").column("question").to_pylist()[-1]
    shot = {"question": question.upper(), "worked": "So.", "answer": "1"}
    with pytest.raises(UserError, match=r"^shots: the example '.*' is a question of test set sums; "):
        tried(put(f"{TEST}/shots", [*LISTED, shot]))
    assert tried(put(f"{TRAIN}/shots", [*LISTED, shot])), "training leaves such a problem out"


def test_too_many_examples_are_found_before_any_job(tmp_path: Path) -> None:
    few = both(put(f"{TEST}/shots", {"train_set": "mine", "k": 10}), put("train_sets/mine", entry(tmp_path)))
    with pytest.raises(UserError, match="shots: k: 10: only 9 problems have worked text"):
        tried(few)


def test_a_missing_file_of_examples_is_found_before_any_job(tmp_path: Path) -> None:
    mine = entry(tmp_path)
    (tmp_path / "mine.jsonl").unlink()
    with pytest.raises(UserError, match=r"train_sets.mine.file"):
        grid_of(put("train_sets/mine", mine), put(f"{TEST}/shots", {"train_set": "mine", "k": 1}))
