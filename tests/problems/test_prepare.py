"""Data sets as published, in every layout that is met, become the same few columns; what is lost or odd is told."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import pytest

from softtok.errors import UserError
from softtok.problems.prepare import prepare
from softtok.problems.prompt import normalise
from softtok.problems.spec import Kind
from softtok.problems.toy import OPTIONS
from tests.support.data_files import SUFFIXES, Row, prepared, write
from tests.support.specs import data_spec

PLAIN: Row = {"question": "q", "gold": {"field": "a"}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def from_rows(kind: Kind, rows: list[Row], name: str = "rows.jsonl", **spec: Any) -> tuple[list[Row], Row]:
    return prepared(kind, {"file": {"path": str(write(Path(name), rows))}}, out=f"out/{name}.parquet", **spec)


class TestFiles:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_every_format_gives_the_same_problems(self, suffix: str) -> None:
        rows = [{"q": "What is “π” – in 2 digits?", "a": "3.1"}, {"q": "Two\nlines, and a comma?", "a": "5"}]
        problems, manifest = from_rows("test", rows, f"rows.{suffix}", **PLAIN)
        assert problems == [{"id": f"row{n}", "question": row["q"], "gold": [row["a"]]} for n, row in enumerate(rows)]
        assert manifest["source_sha256"] == hashlib.sha256(Path(f"rows.{suffix}").read_bytes()).hexdigest()
        assert manifest["sha256"] == hashlib.sha256(Path(f"out/rows.{suffix}.parquet").read_bytes()).hexdigest()
        assert (manifest["rows"], manifest["source_rows"], manifest["dropped"], manifest["flagged"]) == (2, 2, [], [])

    def test_csv_text_stays_as_written(self) -> None:
        rows = [{"q": "one", "a": "0.50"}, {"q": "None", "a": "007"}]
        problems, _ = from_rows("test", rows, "rows.csv", **PLAIN)
        assert [(problem["question"], problem["gold"]) for problem in problems] == [
            ("one", ["0.50"]),
            ("None", ["007"]),
        ]

    def test_several_files_are_read_in_the_order_of_their_names(self) -> None:
        for n in (3, 0, 5, 1, 4, 2):
            write(Path(f"part{n}.jsonl"), [{"q": f"x{n}", "a": n}])
        problems, _ = prepared("test", {"file": {"path": ["part[3-5].jsonl", "part[0-2].jsonl"]}}, **PLAIN)
        assert [problem["gold"] for problem in problems] == [["3"], ["4"], ["5"], ["0"], ["1"], ["2"]]

    def test_a_headless_csv(self) -> None:
        Path("x.csv").write_text('"Which, one?",3,None,B\n', encoding="utf-8")
        source = {"file": {"path": "x.csv", "columns": ["q", "A", "B", "right"]}}
        problems, _ = prepared("choice", source, question="q", choices={"fields": ["A", "B"]}, answer="right")
        assert problems == [{"id": "row0", "question": "Which, one?", "choices": ["3", "None"], "answer": 1}]

    def test_paths_start_at_data_root_and_need_not_exist_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        write(tmp_path / "root" / "x.jsonl", [{"q": "x", "a": 1}])
        spec = data_spec("test", {"file": {"path": "x.jsonl"}}, **PLAIN)
        prepare(spec, Path("a.parquet"), {}, tmp_path / "root")
        with pytest.raises(UserError, match=r"x\.jsonl: no such file"):
            prepare(spec, Path("b.parquet"), {}, None)

    def test_the_reader_leaves_no_cache_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from_rows("test", [{"q": "x", "a": 1}], **PLAIN)
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
            "rows.jsonl",
            "rows.jsonl.json",
            "rows.jsonl.parquet",
        ]

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("x.jsonl", '{"q": "x", "a"'),
            ("x.txt", "x"),
            ("x.parquet", "no parquet"),
            ("x.csv", ""),
            ("x.jsonl", ""),
            ("x.jsonl", "\n"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_one_line_and_leaves_nothing(self, name: str, text: str) -> None:
        Path(name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=name) as caught:
            prepared("test", {"file": {"path": name}}, **PLAIN)
        assert "\n" not in str(caught.value)
        assert not Path("out").exists()


class TestGold:
    @pytest.mark.parametrize(
        ("value", "rule", "expected"),
        [
            ("6 * 7 = <<6*7=42>>42\n#### 42", {"after": "####"}, ["42"]),
            ("#### 1 #### 2 ", {"after": "####"}, ["2"]),
            ("so \\boxed{1} or \\boxed{\\frac{1}{2}}.", {"boxed": True}, ["\\frac{1}{2}"]),
            (" 42 ", {}, ["42"]),
            (42, {}, ["42"]),
            (42.0, {}, ["42"]),
            (0.5, {}, ["0.5"]),
            (["1", "$\\frac{3}{2}$"], {}, ["1", "\\frac{3}{2}"]),
            ("$3$, $4$", {}, ["$3$, $4$"]),
        ],
    )
    def test_rules(self, value: Any, rule: Row, expected: list[str]) -> None:
        problems, _ = from_rows("test", [{"q": "x", "a": value}], question="q", gold={"field": "a", **rule})
        assert problems[0]["gold"] == expected

    def test_nested_fields(self) -> None:
        rows = [{"prompt": [{"content": "How many?"}], "model": {"truth": "3"}}]
        problems, _ = from_rows("test", rows, question="prompt.0.content", gold={"field": "model.truth"})
        assert problems == [{"id": "row0", "question": "How many?", "gold": ["3"]}]

    def test_a_test_problem_without_gold_is_a_mistake(self) -> None:
        with pytest.raises(UserError, match=r"row1 has no gold by the rule .*####"):
            from_rows(
                "test",
                [{"q": "x", "a": "#### 1"}, {"q": "y", "a": "2"}],
                question="q",
                gold={"field": "a", "after": "####"},
            )

    def test_a_misspelt_field_names_the_nearest(self) -> None:
        with pytest.raises(UserError, match=r"rows\.jsonl, row 0: no field 'anser'; did you mean 'answer'\?"):
            from_rows("test", [{"q": "x", "answer": "1"}], question="q", gold={"field": "anser"})


class TestFaults:
    ROWS: ClassVar[list[Row]] = [
        {"q": "good", "a": "#### 1"},
        {"q": "no marker", "a": "2"},
        {"q": " ", "a": "#### 3"},
        {"q": "Good ", "a": "#### 4"},
        {"q": "unreadable", "a": "#### ( ,"},
    ]
    RULE: ClassVar[Row] = {"question": "q", "gold": {"field": "a", "after": "####"}}

    def test_a_train_set_drops_what_it_cannot_use(self) -> None:
        problems, manifest = from_rows("train", self.ROWS, **self.RULE)
        assert [problem["id"] for problem in problems] == ["row0", "row3"]
        assert {row["id"] for row in manifest["dropped"]} == {"row1", "row2", "row4"}

    def test_a_test_set_never_loses_a_problem(self) -> None:
        problems, manifest = from_rows("test", self.ROWS[:1] + self.ROWS[2:], **self.RULE)
        assert [problem["id"] for problem in problems] == [f"row{n}" for n in range(4)]
        assert manifest["dropped"] == []
        assert {row["id"] for row in manifest["flagged"]} == {"row1", "row2", "row3"}

    def test_a_question_with_two_golds_is_reported(self) -> None:
        _, manifest = from_rows("train", self.ROWS, **self.RULE)
        assert [row["id"] for row in manifest["flagged"]] == ["row3"]
        assert "row0" in manifest["flagged"][0]["reason"]

    def test_the_second_of_two_golds_may_make_the_difference(self) -> None:
        rows = [{"q": "x", "a": ["1", "2"]}, {"q": "x", "a": ["1", "3"]}, {"q": "x", "a": ["1", "2"]}]
        _, manifest = from_rows("test", rows, **PLAIN)
        assert [row["id"] for row in manifest["flagged"]] == ["row1"]

    def test_limit_takes_the_first_that_remain(self) -> None:
        rows = [*self.ROWS, {"q": "better", "a": "#### 5"}]
        problems, manifest = from_rows("train", rows, limit=2, **self.RULE)
        assert [problem["id"] for problem in problems] == ["row0", "row3"]
        assert manifest["source_rows"] == 6

    def test_nothing_left_is_an_error(self) -> None:
        with pytest.raises(UserError, match=r"no problem is left of 1 rows \(1 dropped\)"):
            from_rows("train", self.ROWS[1:2], **self.RULE)

    def test_ids_are_the_sources_and_unique(self) -> None:
        rows = [{"q": "x", "a": 1, "name": "n/1"}, {"q": "y", "a": 2, "name": "n/2"}]
        problems, _ = from_rows("test", rows, id="name", **PLAIN)
        assert [problem["id"] for problem in problems] == ["n/1", "n/2"]
        with pytest.raises(UserError, match="rows 0 and 2 have the same id 'n/1'"):
            from_rows("test", [*rows, rows[0]], id="name", **PLAIN)


class TestExclude:
    def test_held_out_questions_are_dropped_and_named(self) -> None:
        from_rows("test", [{"q": "How  many\napples?", "a": 3}], "test.jsonl", **PLAIN)
        rows = [{"q": "how many apples?", "a": 3}, {"q": "How many pears?", "a": 3}]
        problems, manifest = from_rows("train", rows, exclude={"apples": Path("out/test.jsonl.parquet")}, **PLAIN)
        assert [problem["id"] for problem in problems] == ["row1"]
        assert manifest["dropped"] == [{"id": "row0", "reason": "the question is in test set apples"}]

    def test_copies_differ_in_case_space_and_form_only(self) -> None:
        assert normalise("Find $x$  if a caf\u00e9\u00a0has x.") == normalise("find $ x $ if a CAFE\u0301 has x.")
        assert len({normalise(text) for text in ("x + 1", "x - 1", "x² + 1", "x2 + 1")}) == 4


class TestChoices:
    @pytest.mark.parametrize(
        ("row", "mapping"),
        [
            ({"q": "x", "o": ["a", "b", "c"], "r": 2}, {"choices": {"field": "o"}, "answer": "r"}),
            ({"q": "x", "o": ["a", "b", "c"], "r": "2"}, {"choices": {"field": "o"}, "answer": "r"}),
            ({"q": "x", "o": ["a", "b", "c"], "r": "C"}, {"choices": {"field": "o"}, "answer": "r"}),
            (
                {"q": "x", "A": "a", "B": "b", "C": "c", "r": "C"},
                {"choices": {"fields": ["A", "B", "C"]}, "answer": "r"},
            ),
            (
                {"q": "x", "o": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "r": "3"},
                {"choices": {"field": "o.text", "labels": "o.label"}, "answer": "r"},
            ),
        ],
    )
    def test_index_letter_and_label(self, row: Row, mapping: Row) -> None:
        problems, manifest = from_rows("choice", [row], question="q", **mapping)
        assert problems == [{"id": "row0", "question": "x", "choices": ["a", "b", "c"], "answer": 2}]
        assert manifest["flagged"] == []

    @pytest.mark.parametrize("answer", ["D", 3, -1, "", None, "1.5"])
    def test_an_answer_that_is_no_option_is_refused(self, answer: Any) -> None:
        with pytest.raises(UserError, match=r"row 0: answer .* is none of the 3 options"):
            from_rows(
                "choice",
                [{"q": "x", "o": ["a", "b", "c"], "r": answer}],
                question="q",
                choices={"field": "o"},
                answer="r",
            )

    def test_limit(self) -> None:
        rows = [{"q": f"x{n}", "o": ["a", "b"], "r": 0} for n in range(5)]
        problems, _ = from_rows("choice", rows, question="q", choices={"field": "o"}, answer="r", limit=3)
        assert [problem["question"] for problem in problems] == ["x0", "x1", "x2"]

    def test_equal_options_are_flagged(self) -> None:
        _, manifest = from_rows(
            "choice", [{"q": "x", "o": ["a", "a"], "r": 0}], question="q", choices={"field": "o"}, answer="r"
        )
        assert [row["id"] for row in manifest["flagged"]] == ["row0"]


class TestToy:
    def test_every_kind_and_again_the_same_bytes(self) -> None:
        source = {"toy": {"task": "sums", "steps": [2, 4], "split": "test", "problems": 30, "seed": 0}}
        problems, manifest = prepared("test", source)
        assert len(problems) == len({problem["id"] for problem in problems}) == manifest["rows"] == 30
        again, manifest_again = prepared("test", source, "again.parquet")
        assert (again, manifest_again["sha256"]) == (problems, manifest["sha256"])
        choices, _ = prepared("choice", {"toy": {"task": "choice", "split": "test", "problems": 20}}, "choice.parquet")
        assert all(len(choice["choices"]) == OPTIONS and 0 <= choice["answer"] < OPTIONS for choice in choices)

    def test_the_digest_of_the_source_is_that_of_its_problems(self) -> None:
        toy = {"task": "sums", "steps": [2, 2], "split": "test", "problems": 5}
        first, same, other = (
            prepared("test", {"toy": toy | {"seed": seed}}, f"{name}.parquet")[1]["source_sha256"]
            for name, seed in (("first", 0), ("same", 0), ("other", 1))
        )
        assert first == same != other

    def test_no_training_problem_is_in_a_test_set(self) -> None:
        tests = {}
        for name, steps in (("sums", [2, 4]), ("long-sums", [5, 6])):
            tests[name] = Path(f"{name}.parquet")
            prepared("test", {"toy": {"task": "sums", "steps": steps, "split": "test", "problems": 300}}, tests[name])
        problems, manifest = prepared(
            "train", {"toy": {"task": "sums", "split": "train", "problems": 3000}}, exclude=tests
        )
        assert (len(problems), manifest["dropped"]) == (3000, [])


class TestHub:
    def test_a_folder_of_the_hubs_shape(self, tmp_path: Path) -> None:
        (tmp_path / "set" / "main").mkdir(parents=True)
        for split in ("train", "test"):
            write(tmp_path / "set" / "main" / f"{split}.parquet", [{"q": split, "a": "#### 1"}])
        card = "---\nconfigs:\n- config_name: main\n  data_files:\n"
        card += (
            "".join(f"  - split: {split}\n    path: main/{split}.parquet\n" for split in ("train", "test")) + "---\n"
        )
        (tmp_path / "set" / "README.md").write_text(card, encoding="utf-8")
        source = {"hub": {"path": str(tmp_path / "set"), "name": "main", "split": "test", "revision": None}}
        problems, manifest = prepared("test", source, question="q", gold={"field": "a", "after": "####"})
        assert problems == [{"id": "row0", "question": "test", "gold": ["1"]}]
        assert manifest["revision"] is None
        assert len(manifest["source_sha256"]) == 64

    @pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv"])
    def test_files_of_the_hub_are_read_as_they_are_written(self, suffix: str, tmp_path: Path) -> None:
        golds = ["123456789012345678901234567890", "0.10", "007", "2024-01-01", r"\frac{1}{2}"]
        for split in ("train", "test"):
            (tmp_path / "set").mkdir(exist_ok=True)
            write(tmp_path / "set" / f"{split}.{suffix}", [{"q": f"{split} {gold}", "a": gold} for gold in golds])
        source = {"hub": {"path": str(tmp_path / "set"), "split": "test+train", "revision": None}}
        problems, _ = prepared("test", source, **PLAIN)
        assert [problem["gold"] for problem in problems] == [[gold] for gold in golds * 2]
        assert [problem["question"].split()[0] for problem in problems] == ["test"] * 5 + ["train"] * 5

    def test_json_of_the_hub_may_change_its_types_late(self, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        lines = ['{"q": "q", "a": 5}'] * 3000 + [
            '{"q": "q", "a": 123456789012345678901234567890}',
            '{"q": "x", "a": "y"}',
        ]
        (tmp_path / "set" / "train.jsonl").write_text("\n".join(lines))
        source = {"hub": {"path": str(tmp_path / "set"), "split": "train", "revision": None}}
        problems, _ = prepared("test", source, judged_by="exact", **PLAIN)
        assert [problem["gold"] for problem in problems[-2:]] == [["123456789012345678901234567890"], ["y"]]

    def test_a_slice_of_a_split_is_left_to_the_hubs_library(self, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        write(tmp_path / "set" / "train.jsonl", [{"q": f"x{n}", "a": f"{n}"} for n in range(4)])
        source = {"hub": {"path": str(tmp_path / "set"), "split": "train[1:3]", "revision": None}}
        assert [problem["gold"] for problem in prepared("test", source, **PLAIN)[0]] == [["1"], ["2"]]

    def test_the_revision_is_resolved_fetched_and_locked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets
        import huggingface_hub

        fetched: Row = {}

        def load_dataset(path: str, name: str | None, **options: Any) -> Any:
            fetched.update(options, path=path, name=name)
            return datasets.Dataset.from_list([{"q": "x", "a": "1"}])

        monkeypatch.setattr(
            huggingface_hub.HfApi,
            "dataset_info",
            lambda self, path, revision: type("Info", (), {"sha": f"{path}@{revision}"}),
        )
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: None)  # neither JSON nor CSV
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        _, manifest = prepared(
            "test", {"hub": {"path": "o/d", "name": "main", "split": "test", "revision": "v1"}}, **PLAIN
        )
        assert manifest["revision"] == fetched["revision"] == "o/d@v1"
        assert (fetched["path"], fetched["name"], fetched["split"]) == ("o/d", "main", "test")

    def test_no_network_is_one_line_and_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        def unreachable(*args: Any, **options: Any) -> None:
            raise OSError("Name or service not known\nmany more lines")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
        with pytest.raises(
            UserError,
            match=r"o/d \(revision main\) cannot be fetched: OSError: Name or service not known; .* data_root",
        ) as caught:
            prepared("test", {"hub": {"path": "o/d", "split": "test"}}, **PLAIN)
        assert "\n" not in str(caught.value)
        assert not Path("out").exists()
