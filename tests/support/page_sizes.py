"""How large a report's page is: `python -m tests.support.page_sizes STUDY ...`, and `--page FILE ...` for others.

Studies of config.yaml are made up at their full size, with 60 problems a test set, CoTs and questions of made-up words
as long as GSM8K's, and thoughts of four problems. A real Chromium says how high the page is and which text is smallest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from softtok.config.grid import Grid
from softtok.config.load import read
from softtok.config.specs import ReportSpec
from softtok.report.page import make_report
from softtok.storage.files import THOUGHTS_SUFFIX, write_table
from tests.support.browser import CHROMIUM, MISSING, act
from tests.support.synthetic_runs import write_planned

PROBLEMS, THOUGHT, SAMPLES, COT = 60, 4, 4, 128
WIDTHS = (1400, 390)
MEASURE = """
const says = (node) => [...node.childNodes].some((part) => part.nodeType === 3 && part.data.trim());
const drawn = all("body *").filter((node) => says(node) && node.getClientRects().length);
const size = (node) => parseFloat(getComputedStyle(node).fontSize);
const scale = (node) => Math.hypot(node.getScreenCTM().a, node.getScreenCTM().b);
const sizes = drawn.filter((node) => !node.ownerSVGElement).map(size);
const texts = drawn.filter((node) => node.ownerSVGElement).map((node) => size(node) * scale(node));
return [document.documentElement.scrollHeight, Math.min(...sizes), Math.min(...texts)];
"""


def main() -> None:
    """Prints a row of a table for each study or page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="*")
    parser.add_argument("--page", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit(MISSING)
    print("| page | runs | MB | seconds | height at 1,400 | at 390 pixels | smallest text, in figures |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for page in options.page:
            print(row(page.parent.name, "", page, "", Path(folder)), flush=True)
        for study in options.study:
            root = Path(folder, study)
            spec = Grid(read(Path("config.yaml"))).studies[study].spec
            make_up(root, spec)
            start = time.process_time()
            make_report(spec, root / "out", root)
            spent = f"{time.process_time() - start:.0f}"
            print(row(study, str(len(spec.runs)), root / "out/report.html", spent, Path(folder)), flush=True)


def row(name: str, runs: str, page: Path, seconds: str, folder: Path) -> str:
    """Returns a row of the table."""
    told = [act(page, MEASURE, folder, width) for width in WIDTHS]
    text, drawn = min(one[1] for one in told), told[0][2]
    heights = [f"{one[0]:,}" for one in told]
    cells = [name, runs, f"{page.stat().st_size / 1e6:.1f}", seconds, *heights, f"{text:.1f}, {drawn:.1f}"]
    return f"| {' | '.join(cells)} |"


def make_up(root: Path, spec: ReportSpec) -> None:
    """Writes the whole study as its workflow would leave it."""
    root.mkdir()
    write_planned(root, spec, problems=PROBLEMS, steps=400, cot=COT)
    rng = np.random.default_rng(5)
    for name, path in spec.data["test"].items():
        ids = [f"{name}-{place:05d}" for place in range(PROBLEMS)]
        rows = {"id": ids, "question": texts(rng, PROBLEMS, 45), "gold": [["42"]] * PROBLEMS}
        write_table(root / path, pa.table(rows))
    for run in spec.runs:
        for test_set, sets in run.tests.items():
            for name, h8 in sets.items():
                fill(root / run.path / "eval" / test_set / f"{name}-{h8}.parquet", rng)


def fill(path: Path, rng: np.random.Generator) -> None:
    """Gives samples CoTs of their own, and the soft samples of the first problems their thoughts."""
    rows = pd.read_parquet(path)
    rows["cot"] = texts(rng, len(rows), 50)
    rows["answer"] = [rf" So the final answer is \boxed{{{number}}}." for number in rng.integers(1, 400, len(rows))]
    first = rows["problem_id"].str[-5:].astype(int) < THOUGHT
    soft = rows[first & (rows["sample"] < SAMPLES) & ~rows["inference_mode"].str.startswith("hard")]
    steps = []
    for mode, problem, sample, count in soft[["inference_mode", "problem_id", "sample", "cot_tokens"]].itertuples(
        index=False, name=None
    ):
        weights = np.sort(rng.dirichlet(np.full(5, 0.3), count))[:, ::-1].round(4).tolist()
        tokens = texts(rng, 5 * count, 1)
        for step in range(count):
            five = tokens[5 * step : 5 * step + 5]
            where = {"inference_mode": mode, "problem_id": problem, "sample": sample, "step": step}
            mixture = {"tokens": five, "weights": weights[step], "ids": list(range(5))}
            steps.append({**where, "token": five[0], "entropy": float(rng.gamma(1, 0.5)), "moved": 0.33, **mixture})
    rows.to_parquet(path, index=False)
    if steps:
        write_table(path.with_suffix(THOUGHTS_SUFFIX), pa.Table.from_pylist(steps))


def texts(rng: np.random.Generator, count: int, words: int) -> list[str]:
    """Returns texts of some words, of a vocabulary of 2,000 in which words are as unlike each other as in English."""
    letters = rng.choice(list("etaoinshrdlucmfw"), (2000, 6))
    sizes = rng.integers(1, 7, 2000)
    vocabulary = np.array([" " + "".join(word[:size]) for word, size in zip(letters, sizes, strict=True)])
    ranks = np.minimum((rng.pareto(0.9, (count, words)) * 3).astype(int), 1999)
    return ["".join(line) for line in vocabulary[ranks]]


if __name__ == "__main__":
    main()
