"""A figure of one's own: pass@1 of the base and after training, beside the rewards that training saw.

In config.yaml:

    studies:
      mine: {figures: ["examples/figure.py:gains"]}

The first line of the function's docstring is the figure's title, the rest its caption.
"""

import pandas as pd
from matplotlib.figure import Figure


def gains(metrics: pd.DataFrame, training: pd.DataFrame) -> Figure:
    """What training adds to pass@1.

    Left: pass@1 of the base (grey) and of the trained models (blue), as means over inference modes and seeds.
    Right: the mean reward of each training step.
    """
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    first = metrics[(metrics.metric == "pass@k") & (metrics.k == 1)]
    base = first[first.training_mode == "base"].groupby("test_set").value.mean()
    trained = first[first.training_mode != "base"].groupby(["training_mode", "test_set"], as_index=False).value.mean()
    rows = trained.training_mode + " on " + trained.test_set
    start = trained.test_set.map(base)
    left.hlines(rows, start, trained.value, color="lightgrey")
    left.plot(start, rows, "o", color="grey")
    left.plot(trained.value, rows, "o", color="tab:blue")
    left.set_xlabel("pass@1 [%]")
    for (train_set, mode), run in training.groupby(["train_set", "training_mode"]):
        rewards = run.groupby("step").reward.mean()
        right.plot(rewards.index, rewards, label=f"{mode} on {train_set}")
    right.set(xlabel="step", ylabel="reward")
    right.legend()
    return figure
