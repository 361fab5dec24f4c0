"""The cost of a job, by inference mode and device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softtok.storage.costs import JobCost, cost_path, parts_of, read_cost, write_cost

SAMPLE = {"cot_tokens": 7, "answer_tokens": 3}


def line(made_on: str, **cost: Any) -> dict[str, Any]:
    return {"made_on": made_on, "samples": [SAMPLE, SAMPLE], **cost}


def test_a_mode_has_a_part_for_each_device() -> None:
    here = [line("here", wall_s=1.5, peak_memory_mb=10.0), line("here", wall_s=2.5, peak_memory_mb=12.0)]
    one, other = parts_of("soft", [here[0], line("there", wall_s=4.0, peak_memory_mb=90.0), here[1]])
    assert (one.made_on, one.wall_s, one.tokens, one.tokens_per_s, one.peak_memory_mb) == ("here", 4.0, 40, 10.0, 12.0)
    assert (other.made_on, other.wall_s, other.tokens, other.tokens_per_s) == ("there", 4.0, 20, 5.0)


def test_a_time_that_was_not_noted_is_no_time_of_zero() -> None:
    (part,) = parts_of("soft", [line("here", wall_s=1.5, peak_memory_mb=10.0), line("here")])
    assert (part.wall_s, part.tokens_per_s, part.tokens, part.peak_memory_mb) == (None, None, 40, 10.0)


@pytest.mark.parametrize("text", [None, "", "{", '{"parts": 3}'])
def test_a_cost_comes_back_and_one_that_cannot_be_read_is_unknown(text: str | None, tmp_path: Path) -> None:
    rows = tmp_path / "six.1-01234567.parquet"
    assert cost_path(rows).name == "six.1-01234567.cost.json"
    cost = JobCost(made_on="here", ready_s=2.0, parts=parts_of("soft", [line("here", wall_s=1.0)]))
    if text is None:
        write_cost(rows, cost)
        assert read_cost(rows) == cost
    else:
        cost_path(rows).write_text(text)
        assert read_cost(rows) is None
