"""A small project whose jobs are done at once by a stand-in for `softtok`, which writes their outputs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import yaml

from tests.support.project import ROOT, Project

# A bash function outranks every `softtok` on PATH. Calls are noted in calls.txt; contents differ from call to call.
STAND_IN = """() {
    local command=$1 arguments="$*" out place
    shift
    while [ $# -gt 0 ]; do
        [ "$1" = --partial ] && shift
        [ "$1" = --out ] && out=$2
        shift 2
    done
    echo "$command $out" >> calls.txt
    command -v python >> pythons.txt
    case " $FAIL " in *" $command "*) echo "softtok: error: no such thing"; return 1;; esac
    case " $BREAK " in *" $command "*) printf 'Traceback:\\n  ...\\nRuntimeError: no luck\\n'; return 1;; esac
    place=$out
    case $command in data | evaluate | choices) place=${out%/*};; esac
    mkdir -p "$place"
    case $command in
        data) echo "$RANDOM$RANDOM" | tee "$out" > "${out%.parquet}.json";;
        model) echo "$RANDOM$RANDOM" > "$out/model.json";;
        base | train)
            mkdir -p "$out/checkpoint" "$out/.state"
            echo "$RANDOM$RANDOM" | tee "$out"/{checkpoint/checkpoint.json,.state/progress} \\
                "$out"/{metrics.jsonl,manifest.json};;
        evaluate) echo "$RANDOM$RANDOM" | tee "${out%.parquet}".{parquet,thoughts.parquet,entropy.csv} > other.txt;;
        choices) echo "$RANDOM$RANDOM" > "$out";;
        report)
            mkdir -p "$out/tables" "$out/figures"
            echo "$arguments" | tee "$out"/{report.html,metrics.csv,claims.csv,tables/t.md} > "$out/figures/f.svg";;
    esac
}"""

ENVIRONMENT = {"BASH_FUNC_softtok%%": STAND_IN, "BASH_FUNC_exec%%": '() { "$@"; }', "PYTHONPATH": str(ROOT)}

TINY = """
run: [first]
models:
  toy: {toy: {}, training: {steps: 20, validation_problems: 8}}
train_sets:
  sums: {toy: {task: sums, problems: 60}, exclude: [sums]}
test_sets:
  sums: {toy: {task: sums, problems: 5}}
  long-sums: {toy: {task: sums, problems: 5, steps: [5, 6]}}
choice_sets:
  words: {toy: {task: choice, problems: 5}}
training_modes:
  hard: {tokens: hard}
  soft: {tokens: soft, temperature: 0.5, noise_scale: 0.33}
inference_modes:
  hard-greedy: {tokens: hard, temperature: 0.0}
  hard-sample: {tokens: hard, samples: 4}
  soft-greedy: {tokens: soft, temperature: 0.5}
inference_sets:
  all-modes: [hard-greedy, hard-sample]
studies:
  first:
    models: [toy]
    train_sets: [sums]
    training_modes: [hard]
    seeds: [0]
    test_sets: [sums]
    choice_sets: [words]
    inference_sets: [all-modes]
  second:
    models: [toy]
    train_sets: [sums]
    training_modes: [hard, soft]
    seeds: [0]
    test_sets: [sums]
    inference_sets: [all-modes]
"""
FIRST = {
    "data results/data/train/sums.parquet",
    "data results/data/test/sums.parquet",
    "data results/data/choice/words.parquet",
    "model results/models/toy",
    "base results/runs/toy/none/base/seed0",
    "train results/runs/toy/sums/hard/seed0",
    *(
        f"{job} results/runs/toy/{run}/{out}.parquet"
        for run in ("none/base/seed0", "sums/hard/seed0")
        for job, out in (("evaluate", "eval/sums/all-modes"), ("choices", "choices/words"))
    ),
    "report results/reports/first",
}


class StandInProject(Project):
    """A project whose jobs are done by the stand-in."""

    def jobs(self, *words: str) -> set[str]:
        """What runs, as "command path" without hashes.

        All must go well, run once, and leave finished things as they are.
        """
        (self.folder / "calls.txt").unlink(missing_ok=True)
        before = self.finished()
        done = self.snakemake(*words)
        assert done.returncode == 0, done.stdout
        calls = (self.folder / "calls.txt").read_text().split("\n")[:-1] if (self.folder / "calls.txt").exists() else []
        assert not [call for call, times in Counter(calls).items() if times > 1]
        touched = {path for path, content in before.items() if self.finished().get(path) != content}
        assert not touched, "finished results were removed or made again"
        named = {re.sub(r"-[0-9a-f]{8}(?=$|/|\.)", "", call) for call in calls}
        assert len(named) == len(calls)
        return named

    def finished(self) -> dict[Path, str]:
        return {
            path: path.read_text()
            for path in (self.folder / "results").rglob("*")
            if path.is_file() and path.relative_to(self.folder).parts[1] in ("data", "models", "runs")
        }


def tiny(folder: Path) -> StandInProject:
    return StandInProject.create(folder, yaml.safe_load(TINY), **ENVIRONMENT)
