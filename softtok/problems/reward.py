r"""The outcome reward: Math-Verify on the last box, behind a wall of time, memory and crash limits.

An answer takes the cheapest way to a certain verdict: length cap, last balanced box (ours: `boxed.py`), comparison of
plain numbers, exact match after a light normalisation, refusal of what would blow up when evaluated, and only then
Math-Verify in a worker process. Most answers never reach a worker, and SymPy is not imported until one does.

The workers are a pebble pool's, so that a stuck one is killed and replaced while the others go on. One item is one
task: the pool costs 0.06 ms a task, Math-Verify 2 to 100 ms, and so time, memory and crashes are each item's own.
Workers are forked from a clean fork server that has imported Math-Verify: the parent itself, with torch and its
threads, must not be forked, and a replacement is ready in 0.1 s.

Math-Verify's own timeouts (`signal.alarm`) are off: they turn a timeout into "not equal", do not interrupt one long
call of C code (as with gmpy2's integers), and raise outside of the main thread. The pool's wall clock does it; a CPU
limit ends a worker whose parent was killed.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, get_args

from softtok.problems.boxed import last_boxed, normalised

if TYPE_CHECKING:
    from pebble import ProcessPool

Status = Literal["correct", "wrong", "unparsed", "refused", "timeout", "error", "unboxed", "too_long"]
GoldStatus = Literal["ok", "string", "unparsed", "timeout", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)

MAX_CHARS = 10_000  # of an answer's text; 32 tokens are about 100
MAX_COMMAS = 200  # golds of MATH, DeepScaleR and OlympiadBench have up to 47; a list of 1,000 takes 0.5 s
MAX_DEPTH = 40  # of brackets; a depth of 100 takes 1.5 s, to fail
MAX_EXPONENT = 10_000
KNOWN_CASES = 100_000  # verdicts remembered
TASKS_PER_WORKER = 2_000  # then a fresh one: SymPy's caches grow
MAX_DEATHS = 3  # of workers on one item, and it gets no more of them
START_S = 60.0  # in which the first worker must be up
BARREN_ROUNDS = 3  # without a single verdict, and the pool counts as unusable
OUT_OF_MEMORY = 77  # exit code of a worker


@dataclass(frozen=True)
class Verdict:
    """What one answer is worth, and why; `boxed` is what its box holds (None: `unboxed` or `too_long`).

    Status: correct; wrong; unparsed: wrong, and no mathematics in the box; refused: wrong, as it would blow up when
    evaluated; timeout, error: counted as wrong, as Math-Verify did not end, failed, crashed or ran out of memory;
    unboxed: no closed box, or a blank one; too_long.
    """

    reward: float
    correct: bool
    boxed: str | None
    status: Status


class Judge:
    """Grades answers. A context manager: its workers, started when first needed, live until `close`.

    `timeout_s` is the wall time of one item; `memory_mb` what a worker may take beyond what it holds at its start
    (Linux). Use it from one thread at a time, whichever. Like every process pool that does not fork its parent, it
    starts the running script anew in its workers, so that this needs `if __name__ == "__main__":`.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout_s: float = 5.0,
        memory_mb: int = 1024,
        reward_correct: float = 100.0,
        reward_boxed: float = 10.0,
    ) -> None:
        self.workers = workers
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.reward_correct = reward_correct
        self.reward_boxed = reward_boxed
        self._known: dict[tuple, Status] = {}
        self._pool: ProcessPool | None = None
        self._patience_s = START_S  # with a pool that shows no sign of life, beyond the time of the item at hand

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the workers, stuck ones included; a later `grade` starts new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def grade(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[Verdict]:
        r"""One verdict per item: an answer's text with its prefilled `\boxed{`, and golds as LaTeX, any one being
        right.

        An item that hangs, crashes or starves its worker gets its own status and touches no other. Raises ValueError
        for an item without golds, RuntimeError when workers cannot be started at all.
        """
        asked = [(text, tuple(golds)) for text, golds in items]
        seen = [self._look(text, golds) for text, golds in asked]
        cases = [(boxed, golds) for (boxed, _), (_, golds) in zip(seen, asked, strict=True)]
        undecided = [case for case, (boxed, status) in zip(cases, seen, strict=True) if boxed and status is None]
        answers: dict[tuple, Status] = self._ask(_compare, dict.fromkeys(undecided))
        self._remember(answers)
        return [
            self._verdict(boxed, status or answers[case]) for case, (boxed, status) in zip(cases, seen, strict=True)
        ]

    def check_golds(self, golds: Sequence[str]) -> list[GoldStatus]:
        """How Math-Verify takes each gold: ok (it parses, and equals itself), string (only its text is understood),
        unparsed (nothing is, or it does not equal itself), timeout, error."""
        answers = self._ask(_check_gold, dict.fromkeys((gold,) for gold in golds if _number(gold) is None))
        return [answers.get((gold,), "ok") for gold in golds]

    def _look(self, text: str, golds: tuple[str, ...]) -> tuple[str | None, Status | None]:
        """(what the box holds, the status where it takes no worker)."""
        if not golds:
            raise ValueError("an answer cannot be graded without a gold answer")
        if len(text) > MAX_CHARS:
            return None, "too_long"
        boxed = (last_boxed(text) or "").strip()
        if not boxed:
            return None, "unboxed"
        return boxed, quick_status(boxed, golds) or self._known.get((boxed, golds))

    def _verdict(self, boxed: str | None, status: Status) -> Verdict:
        reward = self.reward_correct if status == "correct" else 0.0 if boxed is None else self.reward_boxed
        return Verdict(reward, status == "correct", boxed, status)

    def _remember(self, answers: dict[tuple, Status]) -> None:
        """Keeps verdicts for later calls: also timeouts, or a policy fond of one pays for it at every step, but no
        errors, which may be the machine's."""
        if len(self._known) + len(answers) > KNOWN_CASES:
            self._known.clear()
        self._known.update((case, status) for case, status in answers.items() if status != "error")

    def _ask(self, function: Callable[..., str], cases: Collection[tuple]) -> dict[tuple, Any]:
        """`function(*case)` of every case, computed by the workers, or `timeout` or `error`; whatever befalls them."""
        answers: dict[tuple, str] = {}
        deaths: Counter[tuple] = Counter()
        barren = 0
        while missing := [case for case in cases if case not in answers]:
            before = len(answers) + deaths.total()
            try:
                self._round(function, missing, answers, deaths)
            except RuntimeError as error:  # the pool broke; a new one gets what is missing
                self.close()
                barren = barren + 1 if len(answers) + deaths.total() == before else 0
                if barren == BARREN_ROUNDS:
                    raise RuntimeError(
                        f"the reward's worker processes do not start ({error or type(error).__name__}); what they "
                        f"printed may say why. Is memory_mb={self.memory_mb} too little? Does the running script lack "
                        'its `if __name__ == "__main__":`?'
                    ) from error
        return answers

    def _round(
        self,
        function: Callable[..., str],
        cases: Sequence[tuple],
        answers: dict[tuple, str],
        deaths: Counter[tuple],
    ) -> None:
        """Asks once for all cases and fills in `answers` and `deaths`. Raises RuntimeError when the pool breaks."""
        from pebble import ProcessExpired

        began, fresh = time.monotonic(), self._pool is None
        pool = self._running_pool()
        limits = (self.timeout_s, self.memory_mb)
        futures = [pool.schedule(_guarded, (function, case, *limits), timeout=self.timeout_s) for case in cases]
        for case, future in zip(cases, futures, strict=True):
            try:
                # Tasks start in order: after the end of the one before, this is enough for a restart and the task. What
                # takes longer is a worker killed while it held the pool's lock, or a task.
                answers[case] = future.result(timeout=self.timeout_s + self._patience_s)
            except TimeoutError:
                if not future.done():
                    raise RuntimeError(f"no answer in {self.timeout_s + self._patience_s:.0f} s") from None
                answers[case] = "timeout"
            except ProcessExpired as expired:
                deaths[case] += 1  # by itself, or by a signal or the machine's memory, which strike at random
                if expired.exitcode == OUT_OF_MEMORY or deaths[case] == MAX_DEATHS:
                    answers[case] = "error"
            if fresh:
                fresh, self._patience_s = False, min(START_S, 5 + 3 * (time.monotonic() - began))

    def _running_pool(self) -> ProcessPool:
        from pebble import ProcessPool

        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["math_verify", __name__])
            self._pool = ProcessPool(self.workers, TASKS_PER_WORKER, _start_worker, (self.memory_mb,), context)
        return self._pool


# ---- decided without SymPy ----


def quick_status(boxed: str, golds: tuple[str, ...]) -> Status | None:
    """The status where it is certain without Math-Verify, else None."""
    same = [_same_number(boxed, gold) for gold in golds]
    if True in same:
        return "correct"
    if None not in same:
        return "wrong"
    if normalised(boxed) in map(normalised, golds):
        return "correct"
    # Where a gold is as big, evaluating may be just what is asked for: then the worker's limits alone hold.
    if _blows_up(boxed) and not any(map(_blows_up, golds)):
        return "refused"
    return None


_NUMBER = re.compile(r"-?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?")


@lru_cache(maxsize=4096)
def _number(text: str) -> Decimal | None:
    """The exact value of a plain integer or decimal (commas may group its thousands), None for anything else."""
    text = text.strip()
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def _same_number(boxed: str, gold: str) -> bool | None:
    """Whether two plain numbers are equal; None if one is not plain, or so near that Math-Verify's rounding decides."""
    a, b = _number(boxed), _number(gold)
    if a is None or b is None:
        return None
    if a == b:
        return True
    (_, a_digits, a_exponent), (_, b_digits, b_exponent) = a.as_tuple(), b.as_tuple()
    if a_exponent == b_exponent == 0:
        return False
    # Math-Verify rounds to 6 decimals. Up to 15 digits its Floats, and the difference here, are exact.
    certain = max(len(a_digits), len(b_digits)) <= 15 and abs(a - b) > Decimal("2e-6")
    return False if certain else None


_INTO = r"[\s{(]*"  # what may stand between an operator and its number
_HUGE = re.compile(
    rf"\^{_INTO}[+-]?[0-9]{{5}}"  # (x+1)^{20000}
    r"|[0-9]{5}\s*!"  # 10000!
    rf"|\^{_INTO}[0-9]+\s*\^{_INTO}[0-9]+\s*\^"  # 2^{2^{2^5}}
)
_POWER = re.compile(
    rf"\^{_INTO}(?=([0-9]+)\s*\^{_INTO}([0-9]+))"  # 9^9 in 2^{9^9}
    rf"|(?<![0-9])([0-9]+)\s*\^{_INTO}([0-9]+)[\s}}]*\)[\s)}}]*!"  # and in (9^9)!
)
_BRACKET = re.compile(r"[][(){}]")


@lru_cache(maxsize=4096)
def _blows_up(latex: str) -> bool:
    """Whether evaluating this would waste a worker: huge powers and factorials, towers, long lists, deep nesting.

    It saves time and is no wall: what it misses meets the limits of the worker.
    """
    if latex.count(",") > MAX_COMMAS or _HUGE.search(latex):
        return True
    for power in _POWER.finditer(latex):
        base, exponent = (float(number) for number in power.groups() if number is not None)
        if base > 1 and exponent * math.log10(base) >= math.log10(MAX_EXPONENT):
            return True
    depths = accumulate(1 if bracket in "{([" else -1 for bracket in _BRACKET.findall(latex))
    return max(depths, default=0) > MAX_DEPTH


# ---- run by the workers; parsed objects are never printed: writing out a big one can take for ever ----


def _start_worker(memory_mb: int) -> None:
    """Sets a new worker's limits. Memory counts from what its start took: a fat main script takes none from items."""
    import math_verify  # noqa: F401  (here, not in the first item's time)

    # pebble's handler would wait for the end of a call of C code, and pebble 3 s for the handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for library in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")  # SymPy's, on ill-typed answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS does not know this limit; time alone holds there
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _peak_bytes() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _guarded(function: Callable[..., str], case: tuple, cpu_s: float, memory_mb: int) -> str:
    """`function(*case)`, or `error`; the end of the process, with `OUT_OF_MEMORY`, if it came near its limit: SymPy and
    Math-Verify swallow MemoryErrors and call the answers different."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu_s) + 1, hard))
    try:
        answer = function(*case)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BaseException:  # SystemExit and Math-Verify's TimeoutException too: raised in the parent they would end it
        answer = "error"
    if sys.platform == "linux":
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit - _peak_bytes() < memory_mb * 2**20 // 4:
            os._exit(OUT_OF_MEMORY)
    return answer


def _peak_bytes() -> int:
    """The most address space that this process has held (Linux)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmPeak:"))


def _parse(latex: str) -> list:
    r"""Math-Verify's readings of an answer: SymPy objects, then text. Golds are boxed like answers: bare ones are often
    not found at all, and in `$...$` the time `4:40 a.m.` is read as 4."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    ways = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return parse(rf"\boxed{{{latex}}}", extraction_config=ways, parsing_timeout=None)


_parse_gold = lru_cache(maxsize=256)(_parse)


def _compare(boxed: str, golds: tuple[str, ...]) -> Status:
    """Math-Verify's verdict: gold first, as its comparison is not symmetric."""
    from math_verify import verify

    failed = False
    answer = _parse(boxed)
    for gold in golds:
        expected = _parse_gold(gold)
        try:
            equal = verify(expected, answer, timeout_seconds=None, raise_on_error=True)
        except MemoryError:
            raise
        except Exception:  # of one pair of readings; another pair may still be equal
            failed = True
            equal = verify(expected, answer, timeout_seconds=None)
        if equal:
            return "correct"
    if failed:
        return "error"
    return "unparsed" if all(isinstance(reading, str) for reading in answer) else "wrong"


def _check_gold(gold: str) -> GoldStatus:
    from math_verify import verify

    readings = _parse(gold)
    objects = [reading for reading in readings if not isinstance(reading, str)]
    if objects:
        return "ok" if verify(objects, objects, timeout_seconds=None) else "unparsed"
    return "string" if readings else "unparsed"
