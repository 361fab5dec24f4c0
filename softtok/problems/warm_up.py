"""Reads two expressions when it is imported, which the fork server of the reward's workers does.

SymPy and the parser build tables at their first use, for 0.2 s of CPU time. Workers get them with the fork. Otherwise
the first answer of a worker would pay for them, and on a busy machine might reach its limit of CPU time.
"""

from __future__ import annotations

from softtok.problems.math_reward import compare
from softtok.problems.strict_math import compare_strictly
from softtok.problems.workers import silence

silence()
for _compare in (compare, compare_strictly):
    _compare("x+1", ("12",))
    _compare(r"\frac{1}{2}", ("0.5",))
