rule model:
    input:
        text=ancient(lambda wildcards: model_of(wildcards).text_paths),
    output:
        folder=directory("results/models/{model}-{spec}"),
    log:
        "results/logs/models/{model}-{spec}.log",
    benchmark:
        "results/benchmarks/models/{model}-{spec}.tsv"
    retries: 2  # the hub may be busy
    conda:
        "../../environment.yml"
    threads: lambda wildcards: model_of(wildcards).spec.get("toy", {}).get("threads", 1)
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
        manifest="results/runs/{model}/none/base/seed0-{spec}/train.json",
        metrics="results/runs/{model}/none/base/seed0-{spec}/train.jsonl",
        checkpoint=directory("results/runs/{model}/none/base/seed0-{spec}/checkpoint"),
    log:
        "results/logs/runs/{model}/none/base/seed0-{spec}/base.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=60,
    params:
        spec=lambda wildcards: base_of(wildcards).json,
        out=lambda wildcards, output: str(Path(output.manifest).parent),
    shell:
        "exec softtok base --spec {params.spec:q} --model {input.model:q} --out {params.out:q} > {log:q} 2>&1"
