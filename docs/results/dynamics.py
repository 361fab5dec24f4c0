"""Draws what happens inside the trainings of a study: dynamics.py RUNS_FOLDER FIGURE.png.

RUNS_FOLDER is `results/runs`, or that of a study's records; each run's `metrics.jsonl` is read. Modes of records have
the colours of the study's report.
"""

import json
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from softtok.report.palette import GRID, looks

WINDOW = 10  # steps that are averaged: single ones are too noisy to read
PANELS = {
    "reward": "reward",
    "cot_tokens": "CoT tokens",
    "stopped": "CoTs ended by the phrase [%]",
    "entropy": "entropy of a CoT step [nats]",
    "gradient_norm": "gradient norm",
    "term_share": "norm of the CoT's term / the answer's",
    "recomputation_gap": "recomputation gap [sigma]",
    "shadow_flips": "shadow flips [share of steps]",
}
LOGARITHMIC = ("gradient_norm", "term_share", "recomputation_gap")


def read(folder: Path) -> pd.DataFrame:
    """Returns one line per step of all runs below `folder`, with training mode and seed."""
    frames = []
    for path in sorted(folder.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if len(lines) > 1:  # an untouched model has none
            mode, seed = path.parts[-3], path.parts[-2].partition("-")[0]
            frames.append(pd.DataFrame(lines[1:]).assign(mode=mode, seed=seed))
    if not frames:
        sys.exit(f"{folder}: no run with a metrics.jsonl")
    steps = pd.concat(frames, ignore_index=True).reindex(columns=["mode", "seed", "step", *PANELS, *TERMS])
    path_or_cot, direct_or_answer = (steps[a].fillna(steps[b]) for a, b in (TERMS[:2], TERMS[2:]))
    return steps.assign(term_share=path_or_cot / direct_or_answer)


TERMS = ("gradient_norm_cot", "gradient_norm_path", "gradient_norm_answer", "gradient_norm_direct")


def order_in(folder: Path) -> list[str]:
    """Returns the training modes, in their order, of the study whose records are beside `folder`; none if none are."""
    specs = sorted(folder.parent.glob("*.json"))
    modes: list[str] = json.loads(specs[0].read_text(encoding="utf-8"))["order"]["training_modes"] if specs else []
    return modes


def draw(steps: pd.DataFrame, order: list[str]) -> Figure:
    """Returns a panel for each of `PANELS`: means over seeds, bands from the lowest to the highest."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True)
    style = looks([*order, *steps["mode"]])
    steps = steps.sort_values("mode", key=lambda modes: modes.map(list(style).index), kind="stable")
    for panel, (name, label) in zip(axes.flat, PANELS.items(), strict=True):
        for mode, runs in steps.dropna(subset=[name]).groupby("mode", sort=False):
            if name == "term_share" or runs["step"].nunique() < WINDOW:
                smooth = runs.assign(value=runs[name])  # of some steps only
            else:
                smooth = runs.assign(value=runs.groupby("seed")[name].transform(lambda v: v.rolling(WINDOW).mean()))
            seeds = smooth.groupby("step")["value"]
            colour = style[str(mode)].colour
            panel.plot(seeds.mean(), color=colour, label=str(mode))
            panel.fill_between(seeds.mean().index, seeds.min(), seeds.max(), color=colour, alpha=0.12, linewidth=0)
        panel.set_title(label, fontsize="small", loc="left")
        panel.grid(color=GRID)
        panel.spines[["top", "right"]].set_visible(False)
        if name in LOGARITHMIC:
            panel.set_yscale("log")
    for panel in axes[-1]:
        panel.set_xlabel("step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    draw(read(folder), order_in(folder)).savefig(out, dpi=110)


if __name__ == "__main__":
    main()
