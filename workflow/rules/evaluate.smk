# One job runs all inference modes of a set on one test set: loading a model costs more than a small cell.
rule evaluate:
    input:
        checkpoint="results/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/checkpoint",
        model=ancient(lambda wildcards: run_of(wildcards).untouched_model),
        problems=ancient(lambda wildcards: evaluation_of(wildcards).data.path),
    output:
        samples="results/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/eval/{test_set}/{inference_set}-{cell_spec}.parquet",
        entropy="results/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/eval/{test_set}/{inference_set}-{cell_spec}.entropy.csv",
    log:
        "results/logs/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/eval/{test_set}/{inference_set}-{cell_spec}.log",
    benchmark:
        "results/benchmarks/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/eval/{test_set}/{inference_set}-{cell_spec}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: machine(wildcards).threads
    resources:
        mem_mb=memory_mb,
        runtime=lambda wildcards: machine(wildcards).runtime_min,
        gpu=lambda wildcards: machine(wildcards).gpus or None,
    params:
        spec=lambda wildcards: evaluation_of(wildcards).json,
        runtime=lambda wildcards, threads: machine(wildcards).model_dump_json(),
        run=lambda wildcards, input: str(Path(input.checkpoint).parent),
    shell:
        "exec softtok evaluate --spec {params.spec:q} --runtime {params.runtime:q} --run {params.run:q}"
        " --data {input.problems:q} --out {output.samples:q} > {log:q} 2>&1"


rule choices:
    input:
        checkpoint="results/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/checkpoint",
        model=ancient(lambda wildcards: run_of(wildcards).untouched_model),
        problems=ancient(lambda wildcards: choices_of(wildcards).data.path),
    output:
        scores="results/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/choices/{choice_set}-{cell_spec}.parquet",
    log:
        "results/logs/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/choices/{choice_set}-{cell_spec}.log",
    benchmark:
        "results/benchmarks/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}/choices/{choice_set}-{cell_spec}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: machine(wildcards).threads
    resources:
        mem_mb=memory_mb,
        runtime=lambda wildcards: machine(wildcards).runtime_min,
        gpu=lambda wildcards: machine(wildcards).gpus or None,
    params:
        spec=lambda wildcards: choices_of(wildcards).json,
        runtime=lambda wildcards, threads: machine(wildcards).model_dump_json(),
        run=lambda wildcards, input: str(Path(input.checkpoint).parent),
    shell:
        "exec softtok choices --spec {params.spec:q} --runtime {params.runtime:q} --run {params.run:q}"
        " --data {input.problems:q} --out {output.scores:q} > {log:q} 2>&1"
