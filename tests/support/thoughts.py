"""Questions, and made-up thoughts beside the samples of made-up runs, as evaluations leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from softtok.storage.files import write_table

LONGEST = 4  # samples of a problem with thoughts


def write_questions(root: Path, sketch: dict[str, Any], problems: int) -> None:
    """Writes a prepared test set for each one in the sketch, and puts its path there."""
    for name in sketch["order"]["test_sets"]:
        path = f"results/data/test/{name}-00112233.parquet"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        rows = {
            "id": [f"{name}-{place:05d}" for place in range(problems)],
            "question": [f"What is {place} + {place + 1}?" for place in range(problems)],
            "gold": [[str(2 * place + 1)] for place in range(problems)],
        }
        write_table(root / path, pa.table(rows))
        sketch["data"]["test"][name] = path


def write_thoughts(root: Path, sketch: dict[str, Any], problems: int = 4, name: str = "six-89ab4567") -> None:
    """Writes thoughts of the first problems of every run, and makes the CoTs of these samples the tokens' text."""
    rng = np.random.default_rng(3)
    for run in sketch["runs"]:
        for test_set in sketch["order"]["test_sets"]:
            path = root / run["path"] / "eval" / test_set / f"{name}.parquet"
            rows = pd.read_parquet(path)
            shown = {f"{test_set}-{place:05d}" for place in range(problems)}
            thinks = rows["problem_id"].isin(shown) & (rows["sample"] < LONGEST)
            thinks &= ~rows["inference_mode"].str.startswith("hard")
            steps: list[dict[str, Any]] = []
            for at, row in zip(rows.index[thinks], rows[thinks].to_dict("records"), strict=True):
                where = {name: row[name] for name in ("inference_mode", "problem_id", "sample")}
                made = [made_up_step(rng, where, step) for step in range(row["cot_tokens"])]
                rows.at[at, "cot"] = "".join(step["token"] for step in made)
                steps += made
            rows.to_parquet(path, index=False)
            write_table(path.with_suffix(".thoughts.parquet"), pa.Table.from_pylist(steps))


def made_up_step(rng: np.random.Generator, where: dict[str, Any], step: int) -> dict[str, Any]:
    tokens = [f" {token}" for token in rng.choice(100, 5, replace=False)]
    weights = np.sort(rng.dirichlet(np.full(5, 0.3)))[::-1]
    mixture = {"tokens": tokens, "weights": weights.round(4).tolist(), "ids": list(range(5))}
    entropy = float(-(weights * np.log(weights + 1e-9)).sum())
    return {**where, "step": step, "token": tokens[0], "entropy": entropy, "moved": 0.33, **mixture}
