"""What an evaluation or a choice set cost, in a file beside its rows: NAME-HASH.cost.json.

It is no part of the rows, which are equal wherever and however often they are made. A result without such a file is
one of an earlier version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from softtok.storage.files import write_json
from softtok.storage.records import Record

SUFFIX = ".cost.json"


class Part(Record):
    """What one inference mode took on one device; parts of a choice set have no name and no tokens.

    `wall_s` counts all attempts at the job, and None if some of it is of an earlier version that did not note it.
    """

    inference_mode: str
    made_on: str
    wall_s: float | None
    tokens: int
    tokens_per_s: float | None
    peak_memory_mb: float | None


class JobCost(Record):
    """The cost of a job: its parts, and the seconds that its last attempt took to load and check what it needs."""

    made_on: str
    ready_s: float
    parts: list[Part]


def cost_path(rows: Path) -> Path:
    """Returns where the cost of a file of rows is, such as six-0123abcd.cost.json beside six-0123abcd.parquet."""
    return rows.with_suffix(SUFFIX)


def write_cost(rows: Path, cost: JobCost) -> None:
    """Writes the cost of a job beside its rows."""
    write_json(cost_path(rows), cost.model_dump(mode="json"))


def read_cost(rows: Path) -> JobCost | None:
    """Returns the cost of a job; None if it is not known."""
    try:
        return JobCost.model_validate_json(cost_path(rows).read_bytes())
    except (OSError, ValidationError):
        return None


def parts_of(name: str, lines: Iterable[Mapping[str, Any]]) -> list[Part]:
    """Returns the parts of an inference mode, one for each device, from the lines of its shard.

    A line has `made_on`, `samples` with the numbers of their tokens, if it is of an inference mode, and, but for those
    of an earlier version, its share of the time (`wall_s`) and the memory (`peak_memory_mb`).
    """
    places: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        places.setdefault(line["made_on"], []).append(line)
    found = []
    for place, made in places.items():
        times: list[float | None] = [line.get("wall_s") for line in made]
        memory = [line.get("peak_memory_mb") for line in made]
        tokens = sum(one["cot_tokens"] + one["answer_tokens"] for line in made for one in line.get("samples", []))
        wall_s = None if None in times else sum(seconds for seconds in times if seconds is not None)
        found.append(
            Part(
                inference_mode=name,
                made_on=place,
                wall_s=wall_s,
                tokens=tokens,
                tokens_per_s=tokens / wall_s if tokens and wall_s else None,
                peak_memory_mb=max((mb for mb in memory if mb is not None), default=None),
            )
        )
    return found
