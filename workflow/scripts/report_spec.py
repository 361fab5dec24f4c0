"""Writes the spec of a report, which rule `report_spec` gives as a param, into a file."""

from pathlib import Path

from snakemake.script import snakemake

Path(snakemake.output.spec).write_text(snakemake.params.text, encoding="utf-8")
