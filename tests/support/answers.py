"""Boxed answers, and plain references for what closes a box and what equals a gold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softtok.problems.boxed import last_boxed


def box(answer: str) -> str:
    """Returns an answer as a rollout gives it."""
    return f" \\boxed{{{answer}}}."


def bare(gold: str, answer: str) -> bool:
    """Returns the verdict of Math-Verify alone, in this process, without its timeouts."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    ways = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    readings = [parse(f"\\boxed{{{text}}}", extraction_config=ways, parsing_timeout=None) for text in (gold, answer)]
    return bool(verify(*readings, timeout_seconds=None))


def closes(text: str) -> bool:
    """Returns whether a box closes in a text: counts unescaped braces, one of which is open."""
    depth, escaped = 1, False
    for character in text:
        depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return True
        escaped = character == "\\" and not escaped
    return False


def golds_of_sets(folder: str | None) -> list[str]:
    """Returns the golds of the real data sets in a folder, as published; none without a folder."""
    if not folder:
        return []

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (Path(folder) / name).read_text(encoding="utf-8").splitlines()]

    solutions = [row["solution"] for name in ("train", "test") for row in rows(f"math/{name}.jsonl")]
    return [
        *(row["answer"].split("####")[1].strip() for name in ("train", "test") for row in rows(f"gsm8k/{name}.jsonl")),
        *(gold for solution in solutions if (gold := last_boxed(solution)) is not None),
        *(str(row["answer"]) for row in rows("deepscaler/deepscaler_preview_partial.jsonl")),
        *(row["answer"] for row in rows("math500/test.jsonl")),
        *(gold for row in rows("olympiadbench/test.jsonl") for gold in row["final_answer"]),
    ]
