rule dataset:
    input:
        exclude=ancient(lambda wildcards: data_of(wildcards).exclude_paths),
    output:
        problems=f"{DATA}.parquet",
        manifest=f"{DATA}.json",
    log:
        aside("logs", f"{DATA}.log"),
    priority: FIRST
    retries: 0  # on a cluster too: the command itself asks a busy hub again, and a wrong name or file stays wrong
    conda:
        "../../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        spec=lambda wildcards: data_of(wildcards).json,
        options=lambda wildcards, input: data_options(wildcards, input),
    shell:
        "exec softtok data --spec {params.spec:q} --out {output.problems:q} {params.options} > {log:q} 2>&1"
