# The entry of the workflow. `snakemake` builds the studies of `run:` in config.yaml, `snakemake STUDY` any other.
import sys
import time
from pathlib import Path

from snakemake.utils import min_version

from softtok.config.load import read_yaml
from softtok.errors import UserError
from softtok.storage.trouble import failures

min_version("9.27")
started = time.time()


# Snakemake reports broken YAML without its place.
if Path("config.yaml").exists():
    try:
        read_yaml(Path("config.yaml"))
    except UserError as error:
        sys.exit(f"softtok: error: {error}")


configfile: "config.yaml"


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


onerror:
    # With `snakemake -q` too, a person reads here why.
    for line in failures(Path("results"), started):
        print(line, file=sys.stderr)
    print(
        "softtok: finished jobs stay finished. `snakemake` continues; `softtok tables STUDY --partial` shows the results so far.",
        file=sys.stderr,
    )


# Every study is a target.
for study in grid.studies:

    rule:
        name:
            study
        input:
            f"{REPORT}/report.html".format(study=study),
