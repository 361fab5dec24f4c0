# The entry of the workflow. `snakemake` builds the studies of `run:` in config.yaml, `snakemake STUDY` any other.
import atexit
import sys
import time
from pathlib import Path

from snakemake.utils import min_version

from softtok.config.yaml_files import read_yaml
from softtok.errors import UserError
from softtok.storage.trouble import disk_trouble, tell_failures

min_version("9.27")

# Snakemake shows a traceback if it cannot write, and `snakemake -q all` shows nothing at all, not even why a job failed.
if trouble := disk_trouble(Path()):
    sys.exit(f"softtok: error: {trouble}")
atexit.register(tell_failures, Path("results"), time.time())

# Snakemake reports broken YAML without its place, and does not bound what it reads.
if Path("config.yaml").exists():
    try:
        read_yaml(Path("config.yaml"))
    except UserError as error:
        sys.exit(f"softtok: error: {error}")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/console.smk"
# Checks the configuration and expands it to jobs, before any rule.
include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        [f"{REPORT}/report.html".format(study=study) for study in grid.config.run],


include: "workflow/rules/data.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


onstart:
    note_what_begins()


onerror:
    console.tell_unexplained()
    report_what_has_finished()
    print(
        "softtok: finished jobs stay finished. `snakemake` continues; `softtok report STUDY --partial` shows the results so far.",
        file=sys.stderr,
    )


# Every study is a target.
for study in grid.studies:

    rule:
        name:
            study
        input:
            f"{REPORT}/report.html".format(study=study),
