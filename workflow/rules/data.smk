rule dataset:
    input:
        exclude=ancient(lambda wildcards: data_of(wildcards).exclude_paths),
    output:
        problems=f"{DATA}.parquet",
        manifest=f"{DATA}.json",
    log:
        aside("logs", f"{DATA}.log"),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=60,
    params:
        spec=lambda wildcards: data_of(wildcards).json,
        options=lambda wildcards, input: data_options(wildcards, input),
    shell:
        "exec softtok data --spec {params.spec:q} --out {output.problems:q} {params.options} > {log:q} 2>&1"
