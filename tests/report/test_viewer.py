"""What the page carries of samples and thoughts: the truth, and no more bytes than it may."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from softtok.report.study import Study
from softtok.report.viewer import FEW_SAMPLES, FEWEST, Viewer, make_viewer
from tests.support.report_specs import report_spec
from tests.support.synthetic_runs import write_study
from tests.support.thoughts import LONGEST, write_questions, write_thoughts

PROBLEMS, THOUGHT = 30, 2
SETS = ("sums", "long-sums")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    root = tmp_path_factory.mktemp("study")
    sketch = write_study(root, modes=("hard", "soft"), seeds=3, problems=PROBLEMS, steps=4, cot=12)
    write_questions(root, sketch, PROBLEMS)
    write_thoughts(root, sketch, problems=THOUGHT)
    return root, Study(report_spec(sketch))


def made(study: tuple[Path, Study], budget: int) -> Viewer:
    viewer = make_viewer(study[1], study[0], budget)
    assert viewer is not None
    return viewer


def unpacked(viewer: Viewer, name: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(viewer.parts[name])))


def samples_of(study: tuple[Path, Study], place: int, test_set: str) -> pd.DataFrame:
    root, planned = study
    return pd.read_parquet(next((root / planned.runs[place].path / "eval" / test_set).glob("six-????????.parquet")))


def parts(viewer: Viewer, kind: str, test_set: str) -> list[int]:
    found = [name.split("-", 2) for name in viewer.parts]
    return [int(place) for what, place, of in found if (what, of) == (kind, test_set)]


def test_everything_is_shown_where_it_fits_and_says_what_the_samples_say(study: tuple[Path, Study]) -> None:
    viewer = made(study, 10**8)
    for test_set in SETS:
        of = viewer.index["sets"][test_set]
        names = [name for name, *_ in of["problems"]]
        assert len(names) == of["total"] == PROBLEMS and of["runs"] == of["tested"] == len(study[1].runs)
        assert of["shown"] == of["drawn"]
        for name, question, gold in of["problems"]:
            place = int(name.rpartition("-")[2])
            assert (question, gold) == (f"What is {place} + {place + 1}?", str(2 * place + 1))
        for place in range(len(study[1].runs)):
            rows = samples_of(study, place, test_set)
            content = unpacked(viewer, f"samples-{place}-{test_set}")
            told = [
                (mode, names[problem], number, bool(sample[0]), *sample[1:])
                for mode, problems in content.items()
                for problem, those in enumerate(problems)
                for number, sample in enumerate(those)
            ]
            columns = [
                "inference_mode",
                "problem_id",
                "sample",
                "correct",
                "status",
                "stop",
                "cot_tokens",
                "cot",
                "answer",
            ]
            assert sorted(told) == sorted(rows[columns].itertuples(index=False, name=None))
            right = rows[rows["correct"]].groupby(["inference_mode", "problem_id"]).size()
            for mode, solved in of["solved"].items():
                assert solved[place] == [right.get((mode, name), 0) for name in names]


def test_problems_with_thoughts_come_first_and_their_steps_are_those_of_the_samples(study: tuple[Path, Study]) -> None:
    viewer = made(study, 10**8)
    for test_set in SETS:
        names = [name for name, *_ in viewer.index["sets"][test_set]["problems"]]
        assert set(names[:THOUGHT]) == {f"{test_set}-{place:05d}" for place in range(THOUGHT)}
        for place in range(len(study[1].runs)):
            content = unpacked(viewer, f"samples-{place}-{test_set}")
            thoughts = unpacked(viewer, f"thoughts-{place}-{test_set}")
            assert set(thoughts) == {mode for mode in content if not mode.startswith("hard")}
            for mode, problems in thoughts.items():
                assert set(problems) == {str(problem) for problem in range(THOUGHT)}
                for problem, those in problems.items():
                    drawn = len(content[mode][int(problem)])
                    assert set(those) == {str(number) for number in range(min(LONGEST, drawn))}
                    for number, steps in those.items():
                        sample = content[mode][int(problem)][int(number)]
                        assert "".join(step[0] for step in steps) == sample[4]
                        assert len(steps) == sample[3]


def test_less_room_leaves_out_problems_then_samples_then_later_seeds(study: tuple[Path, Study]) -> None:
    """Every step down leaves out more, never what was left in before; without thoughts, so that all sizes are known."""
    planned = study[1]
    whole = sum(len(text) for name, text in made(study, 10**8).parts.items() if name.startswith("samples"))
    seen = set()
    for share in (0.5, 0.2, 0.1, 0.05, 0.02, 0.005):
        viewer = made(study, int(whole * share))
        size = sum(len(text) for name, text in viewer.parts.items() if name.startswith("samples"))
        for test_set in SETS:
            of = viewer.index["sets"][test_set]
            places = parts(viewer, "samples", test_set)
            assert len(places) == of["runs"] and all(set(places) == set(runs) for runs in of["solved"].values())
            fewer = len(of["problems"]) < PROBLEMS, of["shown"] != of["drawn"], of["runs"] < of["tested"]
            seen.add(fewer)
            if fewer[1]:
                assert max(of["shown"].values()) == FEW_SAMPLES
            for mode, problems in unpacked(viewer, f"samples-{places[0]}-{test_set}").items():
                assert {len(those) for those in problems} == {of["shown"][mode]}
            if fewer[2]:
                assert len(of["problems"]) == FEWEST
                left_out = [run.seed for place, run in enumerate(planned.runs) if place not in places]
                assert min(left_out) >= max(planned.runs[place].seed for place in places)
        assert size < 1.15 * whole * share or of["runs"] == 1, "the first run's samples are taken for all runs'"
    assert seen == {(True, False, False), (True, True, False), (True, True, True)}
