"""Writes the spec of a report, which rule `report_spec` gives as a param, into a file."""

from pathlib import Path

# Snakemake defines `snakemake` before this script.
Path(snakemake.output.spec).write_text(snakemake.params.text, encoding="utf-8")  # noqa: F821
