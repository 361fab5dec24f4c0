"""Prints pass@k and differences of training modes on one test set, as Markdown: contrasts.py METRICS_CSV SET A:B ..."""

import sys
from collections.abc import Iterator

import pandas as pd

from softtok.report.metrics import summarise


def table(metrics: pd.DataFrame, k: int) -> Iterator[str]:
    """Yields pass@k (%) of each training mode in each inference mode, mean ± std over seeds."""
    cells = metrics[(metrics.metric == "pass@k") & (metrics.k == k)]
    modes = cells.inference_mode.unique()
    yield f"| pass@{k} | " + " | ".join(modes) + " |"
    yield "|---|" + "---|" * len(modes)
    for training_mode, of_mode in cells.groupby("training_mode", sort=False):
        shown = []
        for inference in modes:
            seen = summarise(of_mode[of_mode.inference_mode == inference].value.to_numpy())
            shown.append(f"{seen.mean:.1f}" + (f" ± {seen.std:.1f}" if seen.std is not None else ""))
        yield f"| {training_mode} | " + " | ".join(shown) + " |"


def difference(metrics: pd.DataFrame, ours: str, theirs: str) -> Iterator[str]:
    """Yields the differences of two training modes in pass@1 and pass@32, paired by seed, with 95 % t intervals."""
    index = ["inference_mode", "k", "seed"]
    wanted = metrics[(metrics.metric == "pass@k") & metrics.k.isin([1, 32])]
    values = [wanted[wanted.training_mode == mode].set_index(index).value for mode in (ours, theirs)]
    for _, apart in (values[0] - values[1]).groupby(level=index[:-1], sort=False):
        inference, k = apart.index[0][:2]
        seen = summarise(apart.to_numpy())
        if seen.low is not None and seen.high is not None:
            yield f"| {ours} − {theirs} | {inference} | {k} | {seen.mean:+.1f} [{seen.low:+.1f}, {seen.high:+.1f}] |"


def main() -> None:
    metrics = pd.read_csv(sys.argv[1]).astype({"k": "Int64"})
    metrics = metrics[metrics.test_set == sys.argv[2]]
    for k in (1, 32):
        print(*table(metrics, k), "", sep="\n")
    print("| difference | inference | k | points of pass@k [95 %] |", "|---|---|---:|---:|", sep="\n")
    for pair in sys.argv[3:]:
        ours, _, theirs = pair.partition(":")
        print(*difference(metrics, ours, theirs), sep="\n")


if __name__ == "__main__":
    main()
