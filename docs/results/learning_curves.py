"""A figure of the study `estimator`: learning by steps and by seconds."""

import pandas as pd
from matplotlib.figure import Figure

from softtok.report.palette import GRID, looks

WINDOW = 10  # steps over which rewards are averaged: those of single steps are too noisy to read


def learning_curves(metrics: pd.DataFrame, training: pd.DataFrame) -> Figure:
    """Learning by steps and by seconds.

    Top: mean reward of the last 10 steps. Bottom: accuracy on the problems held out for validation, without noise.
    Lines are means over seeds, bands reach from the lowest to the highest seed. Seconds are those of rollouts, rewards
    and updates, averaged over seeds.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row", squeeze=False)
    style = looks(training["training_mode"])  # in the order of the study, as in its other figures
    training["smooth"] = training.groupby(["training_mode", "seed"])["reward"].transform(
        lambda rewards: rewards.rolling(WINDOW).mean()
    )
    for mode, runs in training.groupby("training_mode", sort=False):
        for row, value in zip(axes, ("smooth", "validation"), strict=True):
            seeds = runs.dropna(subset=[value]).groupby("step")
            low, mean, high = (seeds[value].agg(how) for how in ("min", "mean", "max"))
            for panel, x in zip(row, (mean.index, seeds["seconds"].mean()), strict=True):
                panel.plot(x, mean, color=style[str(mode)].colour, label=mode)
                panel.fill_between(x, low, high, color=style[str(mode)].colour, alpha=0.12, linewidth=0)
    for panel in axes.flat:
        panel.grid(color=GRID)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("reward")
    axes[1, 0].set(xlabel="step", ylabel="validation accuracy [%]")
    axes[1, 1].set_xlabel("seconds of training")
    axes[0, 0].legend(fontsize="small", frameon=False)
    return figure
