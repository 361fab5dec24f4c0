"""A figure of one's own: what training adds to pass@1, beside the rewards that it saw.

In config.yaml:

    studies:
      mine: {figures: ["figure.py:gains"]}

The first line of the function's docstring is the figure's title, the rest its caption.
"""

import pandas as pd
from matplotlib.figure import Figure

RUN = ["model", "train_set", "training_mode"]
TEST = ["test_set", "inference_mode"]


def gains(metrics: pd.DataFrame, training: pd.DataFrame) -> Figure:
    """What training adds to pass@1.

    Left: pass@1 of the trained models minus that of their base, by test set and inference mode, as means over seeds.
    Right: the mean reward of each training step.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    first = metrics[(metrics.metric == "pass@k") & (metrics.k == 1)]
    means = first.groupby([*RUN, *TEST], as_index=False, dropna=False).value.mean()
    base = means[means.training_mode == "base"].set_index(["model", *TEST]).value
    trained = means[means.training_mode != "base"].set_index(["model", *TEST])
    gain = trained.value - base.reindex(trained.index)
    labels = trained.train_set + ", " + trained.training_mode + " on " + trained.index.get_level_values("test_set")
    left.barh([f"{label} ({mode})" for label, mode in zip(labels, gain.index.get_level_values(-1), strict=True)], gain)
    left.set_xlabel("percentage points")
    for (_, train_set, mode), run in training.groupby(RUN):
        right.plot(
            *run.groupby("step", as_index=False).reward.mean()[["step", "reward"]].to_numpy().T,
            label=f"{train_set}, {mode}",
        )
    right.set(xlabel="step", ylabel="reward")
    right.legend()
    return figure
