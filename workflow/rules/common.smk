# Expands the configuration to jobs, which the rules look up. Specs are made in softtok/config/grid.py, paths in jobs.py.
import re
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from softtok.config.calls import note_call
from softtok.config.grid import Grid
from softtok.config.jobs import (
    BASE,
    CHOICES,
    DATA,
    EVALUATION,
    MODEL,
    REPORT,
    REPORT_SPEC,
    RUN,
)
from softtok.config.load import load, wanted
from softtok.config.work import asks_for, in_turn
from softtok.errors import UserError
from softtok.storage.retries import (
    hopeless,
    measuring_notes,
    shortages,
    state_of,
    training_notes,
)
from softtok.storage.trouble import stopped

# Snakemake fills in braces in the paths of environments, and would end in a traceback.
if set("{}") & set(f"{workflow.basedir}{Path.cwd()}"):
    sys.exit(
        f"softtok: error: Snakemake takes braces in a path for wildcards; rename the folder {workflow.basedir}"
    )

# Snakemake hides errors of input functions if the output exists, so all errors are reported here. A WorkflowError would print a
# traceback. Snakemake knows its targets only after parsing, so `load` looks for them in the command line.
try:
    grid = Grid(load(config, workflow.configfiles, sys.argv))
except UserError as error:
    sys.exit(f"softtok: error: {error}")

# Rules call the `softtok` of the environment that Snakemake runs in, even if that is not activated, whatever a `conda:` line says.
# They `exec` it. A waiting shell would be killed by the signal at which softtok saves its state, and the job would end too early.
# Snakemake fills in braces, which the folder's name may hold.
softtok_bin = shlex.quote(str(Path(sys.executable).parent))
shell.prefix(f"export PATH={softtok_bin.replace('{', '{{').replace('}', '}}')}:$PATH; ")


def without_command(record):
    """Shortens the exception of a failed job to its exit status. Its command, with the whole spec, is printed with the job."""
    text = str(record.msg)
    if "CalledProcessError" in text:
        record.msg = re.sub(
            r"Command '.*' (returned|died)", r"its command \1", text, flags=re.DOTALL
        )
    return True


logger.addFilter(without_command)


def without_saved_stops(record):
    """Makes one line of the error of a job that was stopped with its progress saved, as at its time limit."""
    is_error = getattr(record, "event", None) == LogEvent.JOB_ERROR
    submitted = "sbatch failed" not in str(
        getattr(record, "rule_msg", None)
    )  # else the log is of an earlier attempt
    if is_error and submitted and (line := stopped(record.log)):
        record.event, record.msg = None, line
    return True


logger.addFilter(without_saved_stops)


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
HASH = r"[0-9a-f]{8}"


wildcard_constraints:
    kind="train|test|choice",
    name=NAME,
    model=NAME,
    train_set=NAME,
    mode=NAME,
    seed=r"\d+",
    spec=HASH,
    test_set=NAME,
    choice_set=NAME,
    inference_set=NAME,
    cell_spec=HASH,
    report_spec=HASH,
    study=NAME,


def aside(kind, path):
    """Returns the path of the log (`logs`) or the timing (`benchmarks`) of the job that makes this path."""
    return path.replace("results/", f"results/{kind}/", 1)


def job(jobs, pattern, wildcards):
    """Returns the job that these wildcards name."""
    path = pattern.format(**dict(wildcards.items()))
    if path not in jobs:
        raise WorkflowError(
            f"{path}: no study of this configuration has it; `snakemake STUDY` builds a study"
        )
    return jobs[path]


def data_of(wildcards):
    return job(grid.data, DATA, wildcards)


def model_of(wildcards):
    return job(grid.models, MODEL, wildcards)


def run_of(wildcards):
    return job(grid.runs, RUN, wildcards)


def base_of(wildcards):
    return job(grid.runs, BASE, wildcards)


def evaluation_of(wildcards):
    return job(grid.evaluations, EVALUATION, wildcards)


def choices_of(wildcards):
    return job(grid.choices, CHOICES, wildcards)


def study_of(wildcards):
    return job(grid.studies, "{study}", wildcards)


def data_options(wildcards, input):
    """Returns further options of `softtok data`: prepared test sets to exclude, and the folder of local files."""
    data = data_of(wildcards)
    names = [test_set.name for test_set in data.exclude]
    options = [f"--exclude {name}={path}" for name, path in zip(names, input.exclude)]
    if data.spec.source.kind == "file" and grid.config.data_root is not None:
        options.append(f"--data-root {shlex.quote(grid.config.data_root)}")
    return " ".join(options)


def shots_option(wildcards, input):
    """Returns the option for the train set of the examples in prompts, where a job has one."""
    shots = input.get("shots")
    return f"--shots {shots}" if shots else ""


def report_root(wildcards, input):
    """Returns where the relative paths of a report's spec start; remote storage makes local copies in another folder."""
    first = study_of(wildcards).run_files("manifest.json")[0]
    root = input.manifests[0].removesuffix(first)
    return f"--root {shlex.quote(root)}" if root else ""


def machine(wildcards):
    """Returns the machine settings of the job's model.

    Rules pass them as a param that takes `threads`. Snakemake does not track such params, so a change reruns nothing.
    """
    return grid.runtimes[wildcards.model]


def notes(wildcards):
    """Returns where attempts at the job are noted; None if it is that of a model."""
    names = dict(wildcards.items())
    if "mode" not in names:
        return None
    state = state_of(Path(RUN.format(**names)), machine(wildcards).state_folder)
    if "test_set" in names:
        out = Path(f"{EVALUATION}.parquet".format(**names))
        return measuring_notes(state, "evaluate", out)
    if "choice_set" in names:
        return measuring_notes(
            state, "choices", Path(f"{CHOICES}.parquet".format(**names))
        )
    return training_notes(state)


def grown(asked, wildcards, attempt):
    """Returns the memory of a job with a model: a quarter more for each attempt that was short of it.

    A job that will be refused needs next to nothing, and does not wait long.
    """
    if hopeless(notes(wildcards), attempt):
        return 1000
    return asked * (4 + shortages(notes(wildcards), attempt)) // 4


def memory_mb(wildcards, attempt):
    """Returns the memory of a job that makes or trains a model."""
    return grown(machine(wildcards).memory_mb, wildcards, attempt)


def gpus(wildcards, attempt):
    """Returns the GPUs that a training or an evaluation asks for; None for none."""
    asked = machine(wildcards).gpus
    return None if hopeless(notes(wildcards), attempt) else asked or None


# With few cores the jobs of a run stand together, and seed 0 of all modes before seed 1: whenever the workflow is stopped, what has finished is
# a smaller study. Data and models come first, so that no later seed starts because an earlier one has to wait for them.
TURNS = {run.folder: turn for turn, run in enumerate(in_turn(grid.runs.values()))}
FIRST = len(TURNS) + 1


def run_priority(wildcards):
    """Returns the priority of all jobs of a run: lower for a later seed, and for a later mode of the configuration; at least 1."""
    return len(TURNS) - TURNS[run_of(wildcards).folder]


def evaluation_machine(wildcards):
    """Returns the machine settings of a job that tests the model."""
    return machine(wildcards).for_evaluation


def evaluation_memory_mb(wildcards, attempt):
    """Returns the memory of a job that tests a model."""
    return grown(evaluation_machine(wildcards).memory_mb, wildcards, attempt)


def note_what_begins():
    """Notes the configuration of the studies that are built, whole or in part; a later file overrides an earlier one."""
    own = workflow.config_settings
    shipped = [] if own.replace_workflow_config and own.configfiles else ["config.yaml"]
    asked = workflow.dag_settings.targets or grid.config.run
    names = [name for name, study in grid.studies.items() if asks_for(asked, study)]
    note_call(Path("results"), names, [*shipped, *own.configfiles], own.config)


def report_what_has_finished():
    """Makes partial reports of the studies that were asked for, have no whole one, and of which a trained run has finished."""
    for name in wanted(grid.config, sys.argv):
        study = grid.studies[name]
        page = Path(REPORT.format(study=name), "report.html")
        runs = study.run_files("manifest.json")
        begun = any("/base/" not in path and Path(path).exists() for path in runs)
        if begun and Path(study.spec_path).exists() and not page.exists():
            out = page.parent / "partial"
            call = 'PATH="$0:$PATH" softtok report --partial --spec "$1" --out "$2" > /dev/null'
            words = [Path(sys.executable).parent, study.spec_path, out]
            if subprocess.run(["bash", "-c", call, *words]).returncode == 0:
                print(
                    f"softtok: what has finished: {out / 'report.html'}",
                    file=sys.stderr,
                )
