rule report:
    input:
        manifests=lambda wildcards: study_of(wildcards).run_files("train.json"),
        metrics=lambda wildcards: study_of(wildcards).run_files("train.jsonl"),
        samples=lambda wildcards: study_of(wildcards).evaluation_files(".parquet"),
        entropy=lambda wildcards: study_of(wildcards).evaluation_files(".entropy.csv"),
        choices=lambda wildcards: study_of(wildcards).choice_files(".parquet"),
        data=ancient(lambda wildcards: study_of(wildcards).data_files()),
    output:
        page=report(
            "results/reports/{study}/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"study": "{study}"},
        ),
        metrics=report(
            "results/reports/{study}/metrics.csv",
            caption="../report/metrics.rst",
            category="Metrics",
            labels={"study": "{study}"},
        ),
        claims=report(
            "results/reports/{study}/claims.csv",
            caption="../report/claims.rst",
            category="Claims",
            labels={"study": "{study}"},
        ),
        tables=directory("results/reports/{study}/tables"),
        figures=report(
            directory("results/reports/{study}/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"study": "{study}", "figure": "{figure}"},
        ),
    log:
        "results/logs/reports/{study}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=60,
    params:
        # Whether a report is out of date is told by its spec's hash: the spec itself, which Snakemake would print, fills pages.
        identity=lambda wildcards: study_of(wildcards).hash,
        spec=lambda wildcards, threads: study_of(wildcards).json,
        out=lambda wildcards, output: str(Path(output.page).parent),
        root=lambda wildcards, input: report_root(wildcards, input),
    shell:
        "exec softtok report --spec {params.spec:q} --out {params.out:q} {params.root} > {log:q} 2>&1"
