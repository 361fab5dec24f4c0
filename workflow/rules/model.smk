rule model:
    input:
        text=ancient(lambda wildcards: model_of(wildcards).text_paths),
    output:
        folder=directory(MODEL),
    log:
        aside("logs", f"{MODEL}.log"),
    benchmark:
        aside("benchmarks", f"{MODEL}.tsv")
    priority: FIRST
    retries: 0  # on a cluster too: the command itself asks a busy hub again, and a wrong name or file stays wrong
    conda:
        "../../environment.yml"
    threads: lambda wildcards: model_of(wildcards).threads
    resources:
        mem_mb=memory_mb,
        runtime=lambda wildcards: machine(wildcards).runtime_min,
    params:
        spec=lambda wildcards: model_of(wildcards).json,
        runtime=lambda wildcards, threads: machine(wildcards).model_dump_json(),
        text=lambda wildcards, input: f"--text {input.text}" if input.text else "",
    shell:
        "exec softtok model --spec {params.spec:q} --runtime {params.runtime:q} --out {output.folder:q} {params.text}"
        " > {log:q} 2>&1"


rule base:
    input:
        model=ancient(lambda wildcards: base_of(wildcards).model.folder),
    output:
        manifest=f"{BASE}/manifest.json",
        metrics=f"{BASE}/metrics.jsonl",
        checkpoint=directory(f"{BASE}/checkpoint"),
    log:
        aside("logs", f"{BASE}/base.log"),
    priority: FIRST
    retries: 0  # of many that a cluster's profile allows to jobs that save their progress
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        spec=lambda wildcards: base_of(wildcards).json,
        out=lambda wildcards, output: str(Path(output.manifest).parent),
    shell:
        "exec softtok base --spec {params.spec:q} --model {input.model:q} --out {params.out:q} > {log:q} 2>&1"
