r"""The reward: verdicts (Math-Verify's, the loose ones too), the shortcuts before it, the wall around its workers."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softtok import plugins
from softtok.problems import math_reward, reward
from softtok.problems.math_reward import quick_status
from softtok.problems.own_reward import DOOR
from softtok.problems.reward import Answer, Judge
from softtok.problems.verdict import STATUSES, Verdict
from tests.support.answers import bare, box
from tests.support.processes import kill, running, until, workers

HOSTILE = {  # answer -> what the shortcuts make of it
    "9^{9^{9^9}}": "refused",
    "(10^{10})!": "refused",
    "(x+1)^{20000}": "refused",
    "x^{1000000}-(x-1)^{1000000}": "refused",
    "2^{2^{2^5}}": "refused",
    "((9^9))!": "refused",
    "1000000!": "refused",
    "|" * 41: "refused",
    r"\pi" * 200: "refused",
    r" \cup ".join(f"({n},{n + 1})" for n in range(40)): "refused",
    "x" + "=x" * 60: "refused",
    ",".join(map(str, range(2000))): "refused",
    "{" * 2000 + "5" + "}" * 2000: "refused",
    "(" * 3000 + "5" + ")" * 3000: "refused",
    ",".join(map(str, range(50_000))): "too_long",
    "7" * 1_000_000: "too_long",
    "5\x00": "unparsed",
    "\x00": "unparsed",
    r"\frac{": "unboxed",
    "}" * 100: "unboxed",
    r"\binom{10^9}{10^8}": "timeout",  # no shortcut knows this one: the worker's wall
}
SLOW = r"\binom{10^9}{10^8}"  # keeps a worker busy for minutes


ELSEWHERE: set[int] = set()
"""Workers that were there before the test: those of the judge that the module shares."""


def own_workers() -> list[psutil.Process]:
    """Returns the test's own live worker processes."""
    return [one for one in workers() if one.pid not in ELSEWHERE]


@contextmanager
def watching(report: dict[str, int]) -> Iterator[None]:
    """Notes the highest resident memory of any worker, in bytes, as report["rss"]."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            try:
                report["rss"] = max([report.get("rss", 0), *(worker.memory_info().rss for worker in own_workers())])
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=2) as judge:
        yield judge


@pytest.fixture(autouse=True)
def only_own_workers() -> None:
    ELSEWHERE.clear()
    ELSEWHERE.update(worker.pid for worker in workers())


@pytest.fixture(autouse=True)
def quiet_math_verify() -> None:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)


# ---- verdicts ----


@pytest.mark.parametrize(
    ("text", "gold", "status", "points"),
    [
        (r" \boxed{42}.", "42", "correct", 100),
        (r" \boxed{43}.", "42", "wrong", 10),
        (r" \boxed{\text{no idea}}", "42", "wrong", 10),
        (r" \boxed{1/0/}", "42", "unparsed", 10),
        (r" \boxed{42", "42", "unboxed", 0),
        (r" \boxed{}", "42", "unboxed", 0),
        (r" \boxed{ }", "42", "unboxed", 0),
        ("42", "42", "unboxed", 0),
        (r" \boxed{42} " + "x" * 10_000, "42", "too_long", 0),
        (r" \boxed{9^{9^{9^9}}}", "42", "refused", 10),
        (r" \boxed{\boxed{42}.", "42", "correct", 100),
        (r" \boxed{41} \boxed{42}", "42", "correct", 100),
        (r" \boxed{42} \boxed{41}", "42", "wrong", 10),
    ],
)
def test_points_and_status(judge: Judge, text: str, gold: str, status: str, points: float) -> None:
    (verdict,) = judge.grade([(text, [gold])])
    assert (verdict.status, verdict.reward, verdict.correct) == (status, points, status == "correct")
    assert (verdict.boxed is None) == (status in ("unboxed", "too_long")) == (points == 0)
    assert status in STATUSES


def test_points_are_settings() -> None:
    with Judge(reward_correct=1.0, reward_boxed=0.25) as judge:
        verdicts = judge.grade([(box("42"), ["42"]), (box("43"), ["42"]), ("43", ["42"])])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.25, 0.0]


# Verdicts of Math-Verify 0.9.0 that one may not expect, so that another version's differences are noticed.
LOOSE = [
    ("18", "18 %", True),
    ("18", r"18\%", True),
    ("0.5", r"50\%", True),
    ("50", "0.5", False),
    ("Evelyn", "Evelny", True),  # a product of letters
    (r"\text{Evelyn}", r"\text{Evelny}", False),
    ("A", "a", True),
    ("x", "y", False),
    ("2", "{2}", True),  # a set of one
    ("2", r"\{2\}", True),
    ("0.333333", "0.3333334", True),  # six decimals
    ("1/3", "0.333333", True),
    ("1/3", "0.33333", False),
    ("(1,2)", "1,2", True),
    ("1,2", "2,1", True),
    ("1,2", "(2,1)", True),
    ("1,2", "(1,3)", False),
    ("(1,2)", "(2,1)", False),
    ("18", "x=18", True),
    ("x=18", "18", True),
    ("18", r"\$18", True),
    ("18", r"18^\circ", True),
    ("3", r"3 \text{ cm}", True),
    ("18", "18 dollars", False),
    ("5", "5.", False),
    ("10000", r"10,\!000", True),
    ("10000", r"10\,000", False),
    ("1000", "1e3", False),
    ("1 < x < 2", "(1,2)", True),
    ("(1,2)", "1 < x < 2", False),  # not symmetric
]


def test_loose_verdicts_are_as_they_were(judge: Judge) -> None:
    verdicts = judge.grade([(box(answer), [gold]) for gold, answer, _ in LOOSE])
    assert [
        (gold, answer, verdict.correct) for (gold, answer, _), verdict in zip(LOOSE, verdicts, strict=True)
    ] == LOOSE


def test_any_gold_is_right_and_one_may_have_many_values(judge: Judge) -> None:
    items = [
        (box(r"\frac{1}{2}"), ["7", "0.5"]),
        (box("7"), ["8", "9", "7"]),
        (box("7"), ["8", "9"]),
        (box("7"), ["8", r"\sqrt{49}"]),
        (box("7"), ["8", r"\sqrt{50}"]),
        (box("3, 1, 2"), [r"1,2 \text{ or } 3"]),
        (box("1, 2"), ["1,2,3"]),
    ]
    assert [verdict.correct for verdict in judge.grade(items)] == [True, True, False, True, False, True, False]


def test_an_item_needs_a_gold(judge: Judge) -> None:
    with pytest.raises(ValueError, match="gold"):
        judge.grade([(box("7"), [])])


def test_check_golds(judge: Judge) -> None:
    golds = ["42", "1,234.5", r"\frac{1}{2}", "1,2,3", r"7\text{ hours}.", r"\frac{1}{0}", "", "42"]
    assert judge.check_golds(golds) == ["ok", "ok", "ok", "ok", "string", "unparsed", "unparsed", "ok"]


# ---- shortcuts: certain, and cheap ----


def test_plain_numbers_need_no_worker_and_no_sympy() -> None:
    script = """
import sys
from softtok.problems.reward import Judge
with Judge() as judge:
    verdicts = judge.grade([(" \\\\boxed{%d}." % n, ["42"]) for n in range(64)] + [(" \\\\boxed{42.0}", ["1,042"])])
assert [v.status for v in verdicts] == ["correct" if n == 42 else "wrong" for n in range(65)], verdicts
print([name for name in ("sympy", "math_verify", "pebble", "torch") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


digits = st.text("0123456789", min_size=1, max_size=9)
decimals = st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), digits, digits)
integers = st.integers(-(10**12), 10**12).flatmap(
    lambda n: st.sampled_from([str(n), f"{n:,}", f"{n}.0", f"{n}.000001"])
)
small = st.integers(-3, 3).flatmap(
    lambda n: st.sampled_from([str(n), f"{n}.0", f"{n}.0000005", f"{n}.000003", f"0{n}"])
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.tuples(small, small), st.tuples(integers, integers), st.tuples(decimals, decimals)), st.booleans())
def test_numbers_compare_as_in_math_verify(pair: tuple[str, str], same: bool) -> None:
    gold, answer = pair
    if same:
        answer = gold + "0" * ("." in gold)
    status = quick_status(answer, (gold,))
    if status is not None:
        assert (status == "correct") == bare(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        ("1234", "1,234", "correct"),
        ("12,345,678", "12345678", "correct"),
        ("7", "007", "correct"),
        ("5", "5.000", "correct"),
        ("0.1", "0.100001", None),  # six decimals: Math-Verify decides
        ("0.1", "0.10001", "wrong"),
        ("1" * 5000, "1" * 5000, "correct"),
        ("1" * 5000, "1" * 4999 + "2", "wrong"),
        ("1" * 20 + ".5", "1" * 20 + ".7", None),  # beyond a Float's digits
        ("1234", "1,23,4", None),
        ("1234", "1, 234", None),
        ("12", "1 2", None),
        ("5", "5.", None),
        ("5", "٥", None),
        ("42", r"\frac{84}{2}", None),
    ],
)
def test_what_plain_numbers_decide(gold: str, answer: str, status: str | None) -> None:
    assert quick_status(answer, (gold,)) == status


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \dfrac{\pi}{2})"),
        (r"\frac{1}{2}", r" \tfrac { 1 } { 2 }"),
        ("x = 5", "x=5"),
        ("x + y", "x  +\n y"),
        (r"\text{(A)}", r"\text{(A)} "),
    ],
)
def test_equal_looks_are_equal(gold: str, answer: str) -> None:
    assert quick_status(answer, (gold,)) == "correct"
    assert bare(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1,234", "1, 234"),
        ("1 2", "12"),
        ("1  2", "12"),
        ("3.5", "3 .5"),
        ("3.5", "3. 5"),
        (r"\pi r", r"\pir"),
        (r"\leftarrow", "arrow"),
        ("x", "X"),
    ],
)
def test_different_looks_are_left_to_math_verify(gold: str, answer: str) -> None:
    assert quick_status(answer, (gold,)) is None


@pytest.mark.parametrize(
    "answer",
    [
        "2^{1009}",
        r"\frac{100!}{2^{50}}",
        r"\frac{9! 8! 4!}{25!}",
        "2019!",
        r"2^{2^{10}}",
        "e^{x^2}",
        r"\sum_{k=1}^{2023} k",
        "10^{-12}",
        r"(2n)! \cdot 2^{n^2}",
        "(5!)^3",
        r"\sqrt{12345}",
        "x^2, 30000",
        ",".join(map(str, range(100))),
        r"\frac{1}{" * 20 + "2" + "}" * 20,
    ],
)
def test_ordinary_mathematics_is_not_refused(answer: str) -> None:
    assert quick_status(answer, ("42",)) is None


def test_nothing_is_refused_where_a_gold_is_as_big() -> None:
    assert quick_status("3^{20000}", ("9^{10000}",)) is None
    assert quick_status("3^{20000}", ("42", "9^{10000}")) is None
    assert quick_status("3^{20000}", ("42",)) == "refused"


@pytest.mark.parametrize("piece", ["7", "^", "^(", "1^", "1!", "7!", "^{ ", "1,", "1 ", ", ", "\\", "(", "  "])
def test_shortcuts_come_to_an_end_on_any_text(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a hundred times the longest text; work that grows with the square of the length would take minutes."""
    monkeypatch.setattr(reward, "MAX_CHARS", 100 * reward.MAX_CHARS)
    text = box(piece * ((reward.MAX_CHARS - 20) // len(piece)))
    Judge()._look(Answer(text, ("x^2",)))


def test_known_verdicts_need_no_worker() -> None:
    items = [
        (box(r"\frac{84}{2}"), ["42"]),
        (box(r"\frac{84}{2}"), ["42"]),
        (box("42"), [r"\frac{83}{2}"]),
        (box(SLOW), ["42"]),
    ]
    with Judge(timeout_s=1) as judge:
        first = judge.grade(items)
        assert [verdict.status for verdict in first] == ["correct", "correct", "wrong", "timeout"]
        judge.close()
        assert judge.grade(items) == first
        assert judge._workers.pool is None


def test_a_known_verdict_is_of_all_its_golds(judge: Judge) -> None:
    """Asked one after the other, so that each could be remembered for the next."""
    half = box(r"\frac{84}{2}")
    verdicts = [judge.grade([(half, golds)])[0] for golds in (["41"], ["41", "42"], ["42"], ["42", "41"])]
    assert [verdict.correct for verdict in verdicts] == [False, True, True, True]


def test_memory_of_verdicts_is_bounded_and_forgets_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "KNOWN_CASES", 10)
    judge = Judge()
    for n in range(40):
        judge._remember({(str(n), ("1",)): "wrong", (f"-{n}", ("1",)): "error"})
        assert (str(n), ("1",)) in judge._known
        assert (f"-{n}", ("1",)) not in judge._known
    assert len(judge._known) <= 10


# ---- the wall ----


@pytest.mark.thorough
def test_hostile_answers_hurt_nobody_else() -> None:
    ordinary = [(box(rf"\frac{{{2 * n}}}{{14}}"), [rf"\frac{{{n}}}{{{7 + n % 2}}}"]) for n in range(1, 30)]
    hostile = [(rf" \boxed{{{answer}}}" if answer != r"\frac{" else r" \boxed{\frac{", ["42"]) for answer in HOSTILE]
    items = [item for pair in zip(hostile, ordinary, strict=False) for item in pair]
    with Judge(timeout_s=2) as judge:
        judge.grade([(box("1/2"), ["3"])])  # a worker is up
        verdicts = judge.grade(items)
    assert [verdict.status for verdict in verdicts[::2]] == list(HOSTILE.values())
    assert [verdict.correct for verdict in verdicts[1::2]] == [n % 2 == 0 for n in range(1, len(HOSTILE) + 1)]


@pytest.mark.thorough
def test_the_wall_holds_without_the_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_reward, "_blows_up", lambda latex: False)
    answers = [
        "9^{9^{9^9}}",
        "(10^{10})!",
        "(x+1)^{20000}",
        "{" * 2000 + "5" + "}" * 2000,
        r"\frac{84}{2}",
        r"\frac{85}{2}",
    ]
    with Judge(workers=2, timeout_s=1.5) as judge:
        statuses = [verdict.status for verdict in judge.grade([(box(answer), ["42"]) for answer in answers])]
    assert statuses == ["timeout", "timeout", "timeout", "timeout", "correct", "wrong"]


@pytest.mark.thorough
@pytest.mark.parametrize("rewarded", ["math", "math-strict"])
def test_cpu_time_ends_an_answer_long_before_the_wall(rewarded: str) -> None:
    with Judge(grading=reward.Grading.model_validate({"reward": rewarded})) as judge:
        judge._workers.timeout_s = 10_000  # longer than pytest waits
        answers = [SLOW, "(x+1)^{900}", r"\frac{84}{2}", SLOW + "+1", r"\frac{86}{2}"]
        statuses = [verdict.status for verdict in judge.grade([(box(answer), [r"\frac{84}{2}"]) for answer in answers])]
    expanded = "timeout" if rewarded == "math" else "wrong"  # what has a variable is no number, and is not expanded
    assert statuses == ["timeout", expanded, "correct", "timeout", "wrong"]


def test_idle_waiting_is_no_cpu_time_and_a_users_reward_has_no_such_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Judge() as judge:
        judge._workers.cpu_s = 0.2
        assert list(judge._workers.ask(time.sleep, [(0.6,)]).values()) == [None]
    body = ["import time", "end = time.process_time() + 0.8", "while time.process_time() < end: pass", "return 1.0"]
    code = "\n    ".join(["def f(answer, gold):", *body])
    Path("busy.py").write_text(code, encoding="utf-8")
    with Judge(
        timeout_s=60, grading=reward.Grading.model_validate({"reward": plugins.locate("busy.py:f", DOOR)})
    ) as judge:
        assert [verdict.reward for verdict in judge.grade([(box("1"), ["2"])])] == [1.0]


def test_a_worker_stuck_in_one_c_call_is_killed() -> None:
    with Judge(timeout_s=1) as judge:
        judge._workers.cpu_s = None
        judge.grade([(box("1/2"), ["3"])])
        (stuck,) = [worker.pid for worker in own_workers()]
        assert list(judge._workers.ask(sum, [(range(10**12),)]).values()) == ["timeout"]
        until(lambda: stuck not in [worker.pid for worker in own_workers()])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, needs RLIMIT_AS")
def test_memory_is_limited_and_running_out_of_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_reward, "_blows_up", lambda latex: False)
    report: dict[str, int] = {}
    with watching(report), Judge(timeout_s=20, memory_mb=256) as judge:
        verdicts = judge.grade([(box("x^{1000000}-(x-1)^{1000000}"), ["42"]), (box(r"\frac{84}{2}"), ["42"])])
    assert [verdict.status for verdict in verdicts] == ["error", "correct"]
    assert 150 * 2**20 < report["rss"] < 400 * 2**20, "the expression takes over 1 GB where it may"


def test_a_killed_worker_costs_its_item_nothing() -> None:
    items = [(box(rf"\frac{{{2 * n}}}{{14}} + x"), [rf"\frac{{{n}}}{{{7 + n % 2}}} + x"]) for n in range(1, 150)]
    with Judge(workers=2) as judge:
        judge.grade([(box("1/2"), ["3"])])
        verdicts: list[Verdict] = []
        thread = threading.Thread(target=lambda: verdicts.extend(judge.grade(items)))
        thread.start()
        killed = 0
        while thread.is_alive() and killed < 4:
            time.sleep(0.15)
            killed += kill(own_workers()[:1])
        thread.join()
    assert killed >= 2
    assert [verdict.correct for verdict in verdicts] == [n % 2 == 0 for n in range(1, 150)]


def test_an_item_that_always_crashes_its_worker_is_an_error() -> None:
    with Judge() as judge:
        assert judge._workers.ask(os._exit, [(3,)]) == {(3,): "error"}
        assert judge.grade([(box(r"\frac{84}{2}"), ["42"])])[0].correct


def test_workers_that_die_idle_are_replaced() -> None:
    with Judge(workers=2) as judge:
        assert judge.grade([(box(r"\frac{84}{2}"), ["42"])])[0].correct
        until(lambda: len(own_workers()) == 2)
        kill(own_workers())
        time.sleep(0.5)
        assert judge.grade([(box(r"\frac{86}{2}"), ["43"])])[0].correct


@pytest.mark.thorough
def test_a_pool_without_a_sign_of_life_is_replaced() -> None:
    with Judge(timeout_s=1) as judge:
        assert judge.grade([(box(r"\frac{84}{2}"), ["42"])])[0].correct
        assert judge._workers.pool is not None
        channel = judge._workers.pool._pool_manager.worker_manager.workers_channel
        assert channel is not None
        lock = channel.mutex
        assert lock.acquire(timeout=10), "as a worker leaves it that was killed at the wrong moment"
        silent = judge._workers.pool
        assert judge.grade([(box(r"\frac{86}{2}"), ["43"])])[0].correct
        assert judge._workers.pool is not silent


def test_it_works_in_another_thread() -> None:
    def grade() -> None:
        with Judge(timeout_s=1) as judge:
            verdicts.extend(judge.grade([(box(r"\frac{84}{2}"), ["42"]), (box(SLOW), ["42"])]))

    verdicts: list[Verdict] = []
    thread = threading.Thread(target=grade)
    thread.start()
    thread.join()
    assert [verdict.status for verdict in verdicts] == ["correct", "timeout"]


def test_an_interrupted_call_leaves_no_process() -> None:
    def interrupted(judge: Judge) -> None:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        judge.grade([(box(SLOW), [str(n)]) for n in range(500)])

    with Judge(workers=2, timeout_s=60) as judge:
        judge.grade([(box("1/2"), ["3"])])
        with pytest.raises(KeyboardInterrupt):
            interrupted(judge)
    until(lambda: not own_workers())


PARENT = """
import os, sys, threading, time
import psutil
from softtok.problems.reward import Judge

def workers():
    return [worker for child in psutil.Process().children() for worker in child.children()]

def report():
    while not any(worker.cpu_times().user > 1 for worker in workers()):
        time.sleep(0.1)
    print(*(worker.pid for worker in workers()), flush=True)

if __name__ == "__main__":
    judge = Judge(timeout_s=600, memory_mb=512)
    judge._workers.cpu_s = None  # the limit of one answer's CPU time would end the worker before
    judge.grade([(" \\\\boxed{1/2}", ["3"])])
    threading.Thread(target=report).start()
    judge.grade([(" \\\\boxed{\\\\binom{10^9}{10^8}}", ["42"])] * 3)
"""


@pytest.mark.thorough
def test_a_stuck_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 1

    until(lambda: not running(pids[0]), seconds=60)  # its CPU time counts, which a busy machine hands out slowly


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, needs RLIMIT_AS")
def test_workers_hold_math_verify_but_no_torch() -> None:
    import torch  # noqa: F401  (the parent of a training run holds it)

    with Judge() as judge:
        judge.grade([(box("1/2"), ["3"])])
        maps = Path(f"/proc/{own_workers()[0].pid}/maps").read_text()
    assert "torch" in Path("/proc/self/maps").read_text()
    assert "torch" not in maps
    assert own_workers() == []


@pytest.mark.thorough
def test_workers_that_cannot_start_are_an_error_not_a_reward(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text("from softtok.problems.reward import Judge\nJudge().grade([(' \\\\boxed{1/2}', ['3'])])\n")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "BrokenWorkersError: the reward's worker processes do not start" in last
    assert "__main__" in last


# ---- real data ----


def real_golds() -> dict[str, list[str]]:
    """Golds of the real test sets, or a skip."""
    folder = os.environ.get("SOFTTOK_TEST_DATA")
    if not folder:
        pytest.skip("SOFTTOK_TEST_DATA, the folder of the real data sets, is not set")

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (Path(folder) / name).read_text(encoding="utf-8").splitlines()]

    return {
        "gsm8k": [row["answer"].split("####")[1].strip() for row in rows("gsm8k/test.jsonl")],
        "math500": [row["answer"] for row in rows("math500/test.jsonl")],
        "olympiadbench": [gold for row in rows("olympiadbench/test.jsonl") for gold in row["final_answer"]],
    }


def test_on_real_answers_the_verdict_is_math_verifys() -> None:
    rng = random.Random(0)
    rewritings: list[Callable[[str, list[str]], str]] = [
        lambda gold, golds: gold,
        lambda gold, golds: rng.choice(golds),
        lambda gold, golds: gold.replace(r"\frac", r"\dfrac"),
        lambda gold, golds: gold.replace(r"\left", "").replace(r"\right", ""),
        lambda gold, golds: gold.replace(" ", ""),
        lambda gold, golds: gold + rng.choice([r"\%", r"^\circ", r" \text{ cm}", ".", "0"]),
        lambda gold, golds: f"x = {gold}",
        lambda gold, golds: gold.replace(rng.choice("123456789"), rng.choice("123456789")),
    ]
    for name, golds in real_golds().items():
        pairs = [(gold, rewrite(gold, golds)) for gold in rng.sample(golds, 20) for rewrite in rewritings]
        with Judge(workers=2, timeout_s=30) as judge:  # enough on a slow machine
            verdicts = judge.grade([(box(answer), [gold]) for gold, answer in pairs])
        different = [
            (gold, answer, verdict.status)
            for (gold, answer), verdict in zip(pairs, verdicts, strict=True)
            if verdict.correct != bare(gold, answer)
        ]
        assert different == [], name
        counts = Counter(verdict.status for verdict in verdicts)
        assert counts["correct"] > 60, name
        assert counts["wrong"] > 20, name


def test_real_golds_parse_and_equal_themselves(judge: Judge) -> None:
    statuses = {name: Counter(judge.check_golds(golds)) for name, golds in real_golds().items()}
    assert statuses == {
        "gsm8k": {"ok": 1319},
        "math500": {"ok": 500},
        "olympiadbench": {"ok": 673, "string": 2},
    }
