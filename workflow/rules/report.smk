# A report's spec names every run and is too long for a command line, so it is written to a file. The file's name contains its hash: other
# settings give another file, which makes the report out of date. The rule is a script, as Snakemake passes params of any size to one.
rule report_spec:
    output:
        spec=REPORT_SPEC,
    log:
        aside("logs", f"{REPORT_SPEC}.log"),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        text=lambda wildcards, threads: study_of(wildcards).json,
    script:
        "../scripts/report_spec.py"


rule report:
    input:
        spec=lambda wildcards: study_of(wildcards).spec_path,
        manifests=lambda wildcards: study_of(wildcards).run_files("manifest.json"),
        metrics=lambda wildcards: study_of(wildcards).run_files("metrics.jsonl"),
        samples=lambda wildcards: study_of(wildcards).evaluation_files(".parquet"),
        entropy=lambda wildcards: study_of(wildcards).evaluation_files(".entropy.csv"),
        choices=lambda wildcards: study_of(wildcards).choice_files(".parquet"),
        data=ancient(lambda wildcards: study_of(wildcards).data_files()),
    output:
        page=report(
            f"{REPORT}/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"study": "{study}"},
        ),
        metrics=report(
            f"{REPORT}/metrics.csv",
            caption="../report/metrics.rst",
            category="Metrics",
            labels={"study": "{study}"},
        ),
        claims=report(
            f"{REPORT}/claims.csv",
            caption="../report/claims.rst",
            category="Claims",
            labels={"study": "{study}"},
        ),
        tables=report(
            directory(f"{REPORT}/tables"),
            patterns=["{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"study": "{study}", "table": "{table}"},
        ),
        figures=report(
            directory(f"{REPORT}/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"study": "{study}", "figure": "{figure}"},
        ),
    log:
        aside("logs", f"{REPORT}.log"),
    retries: 0  # of many that a cluster's profile allows to jobs that save their progress
    conda:
        "../../environment.yml"
    resources:
        mem_mb=12000,
        runtime=60,
    params:
        out=lambda wildcards, output: str(Path(output.page).parent),
        root=lambda wildcards, input: report_root(wildcards, input),
    shell:
        "exec softtok report --spec {input.spec:q} --out {params.out:q} {params.root} > {log:q} 2>&1"
