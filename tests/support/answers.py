"""Boxed answers, and plain references for what closes a box and what equals a gold."""

from __future__ import annotations


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
