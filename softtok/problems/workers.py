"""Worker processes for code that may hang, crash or use up all memory: SymPy and a user's reward.

The workers belong to a pebble pool, so a stuck one is killed and replaced while the others continue. Each case is one
task, so its time, its memory and its crash affect no other case. A task takes the pool 0.06 ms, and Math-Verify 2 to
100 ms. Workers are forked from a clean fork server that has imported Math-Verify, because the parent, with PyTorch and
its threads, must not be forked. A replacement is ready in 0.1 s.

The pool's wall clock ends a call, and a timer of CPU time (`cpu_s`) ends it much sooner where it computes in vain: the
worker is killed by a signal, as an exception would not reach a long call of C code, or be caught by SymPy. Workers end
with their parent, also when it is killed. A signal that asks the job to stop is for the parent alone, which ends
them when it has saved.
"""

from __future__ import annotations

import fcntl
import logging
import math
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from softtok.errors import UserError
from softtok.storage.breaks import may_end_here
from softtok.storage.locks import STOPPING, blocked_signals

if TYPE_CHECKING:
    from pebble import ProcessPool

TASKS_PER_WORKER = 2_000  # then the worker is replaced, as SymPy's caches grow
MAX_DEATHS = 3  # a case on which so many workers died is given up
CPU_TRIES = 2  # so often a case may run out of CPU time, as a busy machine makes the same work take longer
START_S = 60.0  # the first worker must have started by then
BARREN_ROUNDS = 3  # after so many rounds without a result, the pool counts as unusable
OUT_OF_MEMORY = 77  # exit code of a worker
POLL_S = 0.5  # so often a waiting job looks whether it was asked to end
SETTLE_S = 1.0  # a killed worker's replacement has started by then

Case = tuple[Any, ...]


class BrokenWorkersError(RuntimeError):
    """Worker processes cannot be started, again and again."""


class Workers:
    """Calls functions in worker processes, which start when first needed and live until `close`.

    `timeout_s` is the wall time of one case, `cpu_s` its CPU time (None: no limit of its own). `memory_mb` is what a
    worker may use in addition to its memory at the start (Linux). `prepare` runs at the start of each worker, before
    its memory is limited. Only one thread at a time may use the workers. They import the running script again, as in
    every process pool that does not fork its parent, so a script needs `if __name__ == "__main__":`.
    """

    def __init__(
        self,
        count: int,
        timeout_s: float,
        memory_mb: int,
        prepare: Callable[[], object] | None,
        cpu_s: float | None = None,
    ) -> None:
        self.count = count
        self.timeout_s = timeout_s
        self.cpu_s = cpu_s
        self.memory_mb = memory_mb
        self.prepare = prepare
        self.pool: ProcessPool | None = None
        self._last_death = -math.inf  # when a worker was last found dead or killed
        self._patience_s = START_S  # time to wait for a silent pool, beyond the time of the current case

    def close(self) -> None:
        """Stops the workers, stuck ones included; a later `ask` starts new ones."""
        if self.pool is not None:
            # A worker that is about to start would not find the pool's locks, and print that as a traceback.
            time.sleep(max(0.0, self._last_death + SETTLE_S - time.monotonic()))
            latest = time.monotonic() + START_S
            while any(map(_starting, multiprocessing.active_children())) and time.monotonic() < latest:
                time.sleep(0.01)
            self.pool.stop()  # type: ignore[no-untyped-call]
            self.pool.join()
            self.pool = None

    def ask(self, function: Callable[..., Any], cases: Collection[Case]) -> dict[Case, Any]:
        """Returns `function(*case)` of every case, or `timeout` or `error`.

        Raises the UserError of a worker, and BrokenWorkersError if workers cannot be started at all.
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
                    raise BrokenWorkersError(
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
        """Asks once for all cases and fills in `answers` and `deaths`. Raises RuntimeError if the pool breaks."""
        from pebble import ProcessExpired

        began, fresh = time.monotonic(), self.pool is None
        pool = self._running_pool()
        limits = (self.cpu_s, self.timeout_s, self.memory_mb)
        futures = [pool.schedule(_guarded, (function, case, *limits), timeout=self.timeout_s) for case in cases]
        for case, future in zip(cases, futures, strict=True):
            try:
                # Tasks start in order, so after the end of the one before, this time is enough for a restart and the
                # task. It is exceeded only if a worker was killed while it held the lock of the pool or of a task.
                answers[case] = _result(future, self.timeout_s + self._patience_s)
            except TimeoutError:
                if not future.done():
                    raise RuntimeError(f"no answer in {self.timeout_s + self._patience_s:.0f} s") from None
                answers[case] = "timeout"
                self._last_death = time.monotonic()
            except ProcessExpired as expired:
                self._last_death = time.monotonic()
                deaths[case] += 1  # by itself, by a signal, or as the machine ran out of memory
                if expired.exitcode == -signal.SIGPROF:
                    if deaths[case] >= CPU_TRIES:
                        answers[case] = "timeout"
                elif expired.exitcode == OUT_OF_MEMORY or deaths[case] >= MAX_DEATHS:
                    answers[case] = "error"
            if fresh:
                fresh, self._patience_s = False, min(START_S, 5 + 3 * (time.monotonic() - began))

    def _running_pool(self) -> ProcessPool:
        from pebble import ProcessPool

        if self.pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["math_verify", __name__, "softtok.problems.warm_up"])
            with blocked_signals():
                # The tracker comes first: its start ends the blocking of some signals in this thread.
                multiprocessing.resource_tracker.ensure_running()
            with blocked_signals():
                multiprocessing.forkserver.ensure_running()
            arguments = (self.memory_mb, self.prepare)
            self.pool = ProcessPool(self.count, TASKS_PER_WORKER, _start_worker, arguments, context)
        return self.pool


def _result(future: Future[Any], within_s: float) -> Any:
    """Returns what `future.result` does; a job may end while it waits."""
    end = time.monotonic() + within_s
    while not future.done() and (left := end - time.monotonic()) > 0:
        may_end_here()
        wait([future], min(POLL_S, left))
    return future.result(timeout=0)


def _starting(process: BaseProcess) -> bool:
    """Returns whether a process has not come to `_follow_parent` yet, which gives it a group of its own."""
    assert process.pid is not None, "it was started"
    try:
        return os.getpgid(process.pid) != process.pid
    except ProcessLookupError:  # it has ended
        return False


# ---- run by the workers; parsed objects are never printed, as a big one may take forever ----


def _start_worker(memory_mb: int, prepare: Callable[[], object] | None) -> None:
    """Sets a new worker's limits; memory is counted from its start, so a large main script does not reduce it."""
    import math_verify  # noqa: F401  (its import is not part of the first case's time)

    _follow_parent()
    silence()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if prepare is not None:
        prepare()
    if sys.platform == "linux":  # macOS has no such limit; only time is limited there
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _peak_bytes() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def silence() -> None:
    """Keeps libraries from printing what they think of ill-typed answers, and that they have no timeouts here."""
    for library in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _follow_parent() -> None:
    """Lets a worker end with its parent, or when the pool wants it, and not by a signal to all processes of a job."""
    os.setpgid(0, 0)
    for number in STOPPING:  # a signal to the group that came before, while they were blocked, is dropped too
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    # The pool's way to stop it. pebble's handler waits for the end of a call of C code, and pebble 3 s for the handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None, "the pool starts it"
    # The other end of this pipe is the parent's. When it closes, the kernel sends a signal, which a thread or a handler
    # of Python could not: code in C may hold the interpreter for ever.
    pipe = int(parent.sentinel)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    if hasattr(fcntl, "F_SETSIG"):  # Linux; elsewhere it is SIGIO, which ends a process too
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([pipe], [], [], 0)[0]:  # it had ended before
        os._exit(1)


def _guarded(function: Callable[..., Any], case: Case, cpu_s: float | None, timeout_s: float, memory_mb: int) -> Any:
    """Returns `function(*case)`, or `error`; ends the process with `OUT_OF_MEMORY` if it came close to its limit.

    SIGPROF ends the process after `cpu_s` seconds of CPU time. SymPy and Math-Verify hide MemoryErrors and call the
    answers different.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + timeout_s) + 1, hard))
    signal.setitimer(signal.ITIMER_PROF, cpu_s or 0)
    worker = os.getpid()
    try:
        answer = function(*case)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except UserError:  # the reward itself is broken, not the answer
        raise
    except BaseException:  # SystemExit and Math-Verify's TimeoutException too, which would end the parent
        answer = "error"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if os.getpid() != worker:  # the function forked; the child must not continue as a second worker
            os._exit(0)
    if sys.platform == "linux":
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit - _peak_bytes() < memory_mb * 2**20 // 4:
            os._exit(OUT_OF_MEMORY)
    return answer


def _peak_bytes() -> int:
    """Returns the peak address space of this process (Linux)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmPeak:"))
