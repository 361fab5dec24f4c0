"""Rewards of a user's own: both forms, hostile functions behind the wall, and the dry check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from softtok import plugins
from softtok.errors import UserError
from softtok.problems import reward
from softtok.problems.answer_format import AnswerFormat
from softtok.problems.dry_check import check_reward
from softtok.problems.own_reward import DOOR
from softtok.problems.reward import Answer, Grading, Judge
from tests.support.processes import children, until, workers
from tests.support.specs import data_spec

pytestmark = pytest.mark.thorough

LINES = AnswerFormat(extract="first_line")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def judge_of(text: str, timeout_s: float = 5.0, **grading: object) -> Judge:
    """A judge with the function `f` of a file with this text."""
    Path("mine.py").write_text(text, encoding="utf-8")
    found = plugins.locate("mine.py:f", DOOR)
    return Judge(
        timeout_s=timeout_s, grading=Grading.model_validate({"reward": found, "answer_format": LINES} | grading)
    )


def told(judge: Judge, example: Answer | None = None) -> str:
    """The one line of a dry check that fails."""
    with judge, pytest.raises(UserError) as caught:
        judge.dry_check(example)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SIMPLE = """
def f(answer, gold):
    if answer == "raise":
        raise ValueError("no")
    return {"True": True, "False": False, "nan": float("nan"), "None": None, "text": "1", "list": [1]}.get(
        answer, len(answer) / len(gold))
"""


def test_the_simple_form_and_what_is_an_error() -> None:
    answers = ["True", "False", "abc", "abcd", "raise", "nan", "None", "text", "list", ""]
    with judge_of(SIMPLE) as judge:
        verdicts = judge.grade([(f"\n{answer}\n", ["abcd"]) for answer in answers])
    assert [v.status for v in verdicts] == ["correct", "wrong", "wrong", "correct", *["error"] * 5, "unboxed"]
    rewards = [100, 10, 0.75, 1.0, *[float("nan")] * 5, 0]
    assert [v.reward for v in verdicts] == pytest.approx(rewards, nan_ok=True), "an error is no wrong answer"
    assert [v.boxed for v in verdicts] == [answer or None for answer in answers]
    assert [v.correct for v in verdicts] == [v.status == "correct" for v in verdicts]


def test_a_number_is_solved_from_the_threshold_on() -> None:
    items = [(f"\n{'x' * n}", ["abcd"]) for n in (1, 2, 4)]
    with judge_of(SIMPLE, solved_at=0.5) as judge:
        verdicts = judge.grade(items)
    assert [(v.correct, v.reward) for v in verdicts] == [(False, 0.25), (True, 0.5), (True, 1.0)]


def test_the_best_of_many_golds_counts() -> None:
    with judge_of(SIMPLE) as judge:
        assert [v.reward for v in judge.grade([("\nab", ["abcd", "ab", "abc"])])] == [1.0]
    with judge_of("def f(answer, gold): return answer == gold") as judge:
        assert [v.status for v in judge.grade([("\nb", ["a", "b"]), ("\nc", ["a", "b"])])] == ["correct", "wrong"]


TRL = """
def f(prompts, completions, level, **columns):
    assert len(prompts) == len(completions) == len(level), "lists of one length"
    assert all(len(column) == len(prompts) for column in columns.values())
    return [float(l) + len(p) / 100 if "Paris" in c else -1.0 for p, c, l in zip(prompts, completions, level)]
"""


def test_trls_form_gets_prompts_completions_and_columns() -> None:
    items = [
        Answer("\nParis", ["Paris"], "Capital?", '{"level": 3, "other": null}'),
        Answer("\nRome", ["Paris"], "Capital?", '{"level": 3}'),
        Answer("\nParis", ["Paris"], "Capital?", '{"level": 0}'),
        Answer("", ["Paris"], "Capital?", '{"level": 3}'),
    ]
    with judge_of(TRL) as judge:
        verdicts = judge.grade(items)
    assert [v.reward for v in verdicts] == [3.08, -1.0, 0.08, -1.0]
    assert [v.status for v in verdicts] == ["correct", "wrong", "wrong", "wrong"]
    assert [v.boxed for v in verdicts] == ["Paris", "Rome", "Paris", None]


def test_a_function_of_trls_own_kind_gets_what_it_names() -> None:
    columns = '{"question": "raw", "solution": "a"}'
    with judge_of(
        "def f(completions, gold, question): return [float((gold[0], question[0]) == (['x', 'y'], 'raw'))]"
    ) as j:
        assert j.grade([Answer("\na", ["x", "y"], "", columns)])[0].correct
    with judge_of(
        "def f(completions, **kw): return [float(sorted(kw) == ['gold', 'prompts', 'question', 'solution'])]"
    ) as j:
        assert j.grade([Answer("\na", ["x", "y"], "", columns)])[0].correct


SCRIPT = """
from softtok.plugins import locate
from softtok.problems.own_reward import DOOR
from softtok.problems.reward import Grading, Judge
if __name__ == "__main__":
    with Judge(grading=Grading(reward=locate("mine.py:f", DOOR))) as judge:
        items = [(f" \\\\boxed{{{answer}}}", ["b"]) for answer in ("a", "c", "bb")]
        print(*(verdict.status for verdict in judge.grade(items)))
"""


def test_the_first_fault_is_printed_with_its_line() -> None:
    Path("mine.py").write_text("def f(answer, gold):\n    return 1 / (len(answer) - 1)\n", encoding="utf-8")
    Path("script.py").write_text(SCRIPT, encoding="utf-8")
    run = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=True)
    assert run.stdout == "error error correct\n"
    (line,) = run.stderr.splitlines()
    assert "mine.py, line 2: f raises ZeroDivisionError: division by zero for answer='a'" in line


HOSTILE = """
import os, sys, time
blob = []
def f(answer, gold):
    if answer == "hang":
        while True: pass
    if answer == "sleep": time.sleep(1000)
    if answer == "exit": sys.exit(0)
    if answer == "die": os._exit(3)
    if answer == "fork":
        os.fork()
    if answer == "memory": blob.append(bytearray(3 * 2**30))
    if answer == "interrupt": raise KeyboardInterrupt
    if answer == "deep": return f(answer, gold)
    if answer == "loud": print("x" * 1000); print("x" * 1000, file=sys.stderr)
    return answer == gold
"""


def test_hostile_functions_hurt_no_other_answer() -> None:
    kinds = ["hang", "sleep", "exit", "die", "fork", "interrupt", "deep", "loud", "memory"]
    items = [item for kind in kinds for item in [(f"\n{kind}", ["good"]), ("\ngood", [f"good{kind}", "good"])]]
    with judge_of(HOSTILE, timeout_s=1.5) as judge:
        judge.grade([("\na", ["b"])])
        verdicts = judge.grade(items)
    assert [v.status for v in verdicts[1::2]] == ["correct"] * len(kinds)
    expected = ["timeout", "timeout", "error", "error", "wrong", "error", "error", "wrong", "error"]
    assert [v.status for v in verdicts[::2]] == expected


def test_a_fork_in_a_function_does_not_go_on_as_a_worker() -> None:
    with judge_of(HOSTILE) as judge:
        for _ in range(3):
            judge.grade([("\nfork", ["good"])])
            judge._known.clear()
        assert [v.correct for v in judge.grade([(f"\n{n}", [f"{n % 2}"]) for n in range(40)])][:3] == [
            True,
            True,
            False,
        ]
        pool = [worker for child in children() for worker in children(child.pid, recursive=True)]
        assert len(pool) <= 1 + judge._workers.count


def test_workers_run_what_the_job_began_with() -> None:
    """A worker that starts after an edit: the same code; a job that starts after it: refused."""
    with judge_of("def f(answer, gold): return 1.0") as judge:
        Path("mine.py").write_text("def f(answer, gold): return 2.0", encoding="utf-8")
        assert judge.grade([("\na", ["b"])])[0].reward == 1.0
        with pytest.raises(UserError, match=r"mine\.py has changed since the configuration was read"):
            Judge(grading=judge.grading)


def test_a_file_with_a_neighbour_works_in_the_workers() -> None:
    Path("helper.py").write_text("def same(a, b): return a == b", encoding="utf-8")
    with judge_of("import helper\ndef f(answer, gold): return helper.same(answer, gold)") as judge:
        assert judge.grade([("\na", ["a"])])[0].correct


def test_a_reward_that_cannot_be_imported_is_no_answers_fault() -> None:
    """Not in the dry check, but later, in a worker: it is the job that ends, and no answer that is wrong."""
    broken = judge_of("import helper\ndef f(answer, gold): return True")
    with broken, pytest.raises(UserError, match=r"mine\.py, line 1: f raises ModuleNotFoundError"):
        broken.grade([("\na", ["a"])])


class TestDryCheck:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("def f(answer, gold):\n    return 1 / 0\n", "mine.py, line 2: f raises ZeroDivisionError"),
            ("def f(answer, gold):\n    return float('nan')\n", "mine.py, line 1: f returns nan"),
            ("def f(answer, gold):\n    return None\n", "mine.py, line 1: f returns None"),
            ("def f(answer, gold):\n    return [1.0]\n", "mine.py, line 1: f returns [1.0]"),
            ("def f(answer, gold):\n    return 'yes'\n", "mine.py, line 1: f returns 'yes'"),
            ("def f(completions, **c):\n    return [1.0]\n", "line 1: f returns 1 values for 2 completions"),
            ("def f(completions, **c):\n    return []\n", "f returns 0 values for 2 completions"),
            ("def f(completions, **c):\n    return 1.0\n", "f returns 1.0 for 2 completions"),
            ("def f(completions, **c):\n    return [None for _ in completions]\n", "f returns None"),
            ("def f(prompts, completions):\n    return [prompts[9]]\n", "mine.py, line 2: f raises IndexError"),
            ("import sys\nsys.exit('bye')\ndef f(answer, gold): ...\n", "line 2: f raises SystemExit: bye"),
            ("import os\nos._exit(3)\ndef f(answer, gold): ...\n", "line 3: f ends its process"),
            ("1 / 0\ndef f(answer, gold): ...\n", "mine.py, line 1: f raises ZeroDivisionError"),
            ("f = 5\n", "mine.py, line 1: f is int, not a function"),
            ("f = lambda a, b: True\n", "mine.py, line 1: f takes (a, b)"),
            ("f = int\n", "f "),
            ("def f(answer, gold):\n    import os; os._exit(0)\n", "or ends its process, on an example"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, text: str, says: str) -> None:
        assert says in told(judge_of(text))

    def test_what_hangs_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reward, "IMPORT_S", 2.0)
        assert "takes more than 2 s, or ends its process, while it is imported" in told(
            judge_of("while True: pass\ndef f(answer, gold): ...")
        )
        assert "takes more than 1 s, or ends its process, on an example" in told(
            judge_of("def f(answer, gold):\n    while True: pass", timeout_s=1)
        )

    @pytest.mark.parametrize(
        "text",
        [
            "def f(answer, gold): return answer == gold",
            "def f(answer, gold): return int(answer) - 3",
            "class R:\n    def __call__(self, answer, gold): return 1\nf = R()",
            "import functools\n@functools.cache\ndef f(answer, gold): return 1",
            "def f(completions, **columns): return [1.0 for _ in completions]",
            "import numpy as np\ndef f(completions, prompts): return np.ones(len(completions))",
        ],
    )
    def test_what_works_passes(self, text: str) -> None:
        with judge_of(text) as judge:
            assert judge.dry_check() == ""

    def test_columns_are_known_from_prepared_data_on(self) -> None:
        named = "def f(completions, level): return [float(l) for l in level]"
        read = "def f(completions, **columns): return [float(l) for l in columns['level']]"
        example = Answer("", ["4"], "2 + 2?", '{"level": "3"}')
        for text in (named, read):
            with judge_of(text) as judge:
                assert "column 'level' is known when the data set is prepared" in judge.dry_check()
                assert judge.dry_check(example) == ""
            assert "level" in told(judge_of(text), example._replace(columns='{"other": 1}'))

    def test_a_local_file_gives_the_example(self) -> None:
        """A reward that only knows the golds of its own set would fail on a built-in example."""
        Path("rows.jsonl").write_text('{"q": "hot?", "a": "cold", "level": 2}\n', encoding="utf-8")
        spec = data_spec("train", {"file": {"path": "rows.jsonl"}}, question="q", gold={"field": "a"}, columns=True)
        for text in (
            "def f(answer, gold): return answer == {'cold': 'cold'}[gold]",
            "def f(completions, level): return [float(l) for l in level]",
        ):
            with judge_of(text) as judge:
                assert check_reward(judge.grading, None, "{question}", spec) == ""
        misspelt = judge_of("def f(completions, levle): return [1.0 for _ in completions]")
        with misspelt as judge, pytest.raises(UserError, match="levle"):
            check_reward(judge.grading, None, "{question}", spec)

    def test_a_reward_that_needs_the_whole_memory_to_be_imported_is_fine(self) -> None:
        text = "blob = bytearray(2 * 2**30)\ndef f(answer, gold): return True"
        with judge_of(text) as judge:
            assert judge.dry_check() == ""
            assert judge.grade([("\na", ["a"])])[0].correct

    def test_built_in_rewards_need_none(self) -> None:
        judge = Judge()
        assert judge.dry_check() == ""
        assert judge._workers.pool is None


def test_no_worker_is_left(tmp_path: Path) -> None:
    before = set(workers())
    with judge_of("def f(answer, gold):\n    while True: pass", timeout_s=1) as judge, pytest.raises(UserError):
        judge.dry_check()
    until(lambda: not set(workers()) - before, 10)
