"""Worker processes for code that may hang, crash or eat all memory: SymPy's, and that of a user's own reward.

The workers are a pebble pool's, so that a stuck one is killed and replaced while the others go on. One case is one
task: the pool costs 0.06 ms a task, Math-Verify 2 to 100 ms, and so time, memory and crashes are each case's own.
Workers are forked from a clean fork server that has imported Math-Verify: the parent itself, with torch and its
threads, must not be forked, and a replacement is ready in 0.1 s.

The pool's wall clock ends a call; a CPU limit ends a worker whose parent was killed.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from softtok.errors import UserError

if TYPE_CHECKING:
    from pebble import ProcessPool

TASKS_PER_WORKER = 2_000  # then a fresh one: SymPy's caches grow
MAX_DEATHS = 3  # of workers on one case, and it gets no more of them
START_S = 60.0  # in which the first worker must be up
BARREN_ROUNDS = 3  # without a single result, and the pool counts as unusable
OUT_OF_MEMORY = 77  # exit code of a worker

Case = tuple[Any, ...]


class Workers:
    """Calls functions in worker processes, which start when first needed and live until `close`.

    `timeout_s` is the wall time of one case; `memory_mb` what a worker may take beyond what it holds at its start
    (Linux); `prepare` runs at the start of each worker, before the memory counts. To be used from one thread at a time,
    whichever. Like every process pool that does not fork its parent, it starts the running script anew in its workers,
    so that this needs `if __name__ == "__main__":`.
    """

    def __init__(self, count: int, timeout_s: float, memory_mb: int, prepare: Callable[[], object] | None) -> None:
        self.count = count
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.prepare = prepare
        self.pool: ProcessPool | None = None
        self._patience_s = START_S  # with a pool that shows no sign of life, beyond the time of the case at hand

    def close(self) -> None:
        """Stops the workers, stuck ones included; a later `ask` starts new ones."""
        if self.pool is not None:
            self.pool.stop()  # type: ignore[no-untyped-call]
            self.pool.join()
            self.pool = None

    def ask(self, function: Callable[..., Any], cases: Collection[Case]) -> dict[Case, Any]:
        """Returns `function(*case)` of every case, or `timeout` or `error`.

        Raises a UserError that a worker raises, and RuntimeError when workers cannot be started at all.
        """
        answers: dict[Case, Any] = {}
        deaths: Counter[Case] = Counter()
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
        function: Callable[..., Any],
        cases: Sequence[Case],
        answers: dict[Case, Any],
        deaths: Counter[Case],
    ) -> None:
        """Asks once for all cases and fills in `answers` and `deaths`. Raises RuntimeError when the pool breaks."""
        from pebble import ProcessExpired

        began, fresh = time.monotonic(), self.pool is None
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

        if self.pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["math_verify", __name__, "softtok.problems.math_reward"])
            arguments = (self.memory_mb, self.prepare)
            self.pool = ProcessPool(self.count, TASKS_PER_WORKER, _start_worker, arguments, context)
        return self.pool


# ---- run by the workers; parsed objects are never printed: writing out a big one can take for ever ----


def _start_worker(memory_mb: int, prepare: Callable[[], object] | None) -> None:
    """Sets a new worker's limits. Memory counts from what its start took: a fat main script takes none from cases."""
    import math_verify  # noqa: F401  (here, not in the first case's time)

    # pebble's handler would wait for the end of a call of C code, and pebble 3 s for the handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for library in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")  # SymPy's, on ill-typed answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if prepare is not None:
        prepare()
    if sys.platform == "linux":  # macOS does not know this limit; time alone holds there
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _peak_bytes() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _guarded(function: Callable[..., Any], case: Case, cpu_s: float, memory_mb: int) -> Any:
    """Returns `function(*case)`, or `error`; ends the process, with `OUT_OF_MEMORY`, if it came near its limit.

    SymPy and Math-Verify swallow MemoryErrors and call the answers different.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu_s) + 1, hard))
    worker = os.getpid()
    try:
        answer = function(*case)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except UserError:  # the reward itself is broken: no answer's own fault
        raise
    except BaseException:  # SystemExit and Math-Verify's TimeoutException too: raised in the parent they would end it
        answer = "error"
    finally:
        if os.getpid() != worker:  # a fork of the function's: it must not go on as a second worker
            os._exit(0)
    if sys.platform == "linux":
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit - _peak_bytes() < memory_mb * 2**20 // 4:
            os._exit(OUT_OF_MEMORY)
    return answer


def _peak_bytes() -> int:
    """The most address space that this process has held (Linux)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmPeak:"))
