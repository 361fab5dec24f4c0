# Model and data are ancient: the run's path depends on their specs, so making them again is no reason to train again.
# The resumable state in .state/ is not declared as output, because Snakemake deletes the outputs of a job that fails.
rule train:
    input:
        model=ancient(lambda wildcards: run_of(wildcards).model.folder),
        problems=ancient(lambda wildcards: run_of(wildcards).train_set.path),
        shots=ancient(lambda wildcards: run_of(wildcards).shots_path),
    output:
        manifest=f"{RUN}/manifest.json",
        metrics=f"{RUN}/metrics.jsonl",
        checkpoint=directory(f"{RUN}/checkpoint"),
    log:
        aside("logs", f"{RUN}/train.log"),
    benchmark:
        aside("benchmarks", f"{RUN}/train.tsv")
    wildcard_constraints:
        train_set=f"(?!none/){NAME}",  # runs of untouched models are made by rule base
    priority: run_priority
    conda:
        "../../environment.yml"
    threads: lambda wildcards: machine(wildcards).threads
    resources:
        mem_mb=memory_mb,
        runtime=lambda wildcards: machine(wildcards).runtime_min,
        gpu=gpus,
        attempt=lambda wildcards, attempt: attempt,
    params:
        spec=lambda wildcards: run_of(wildcards).json,
        runtime=lambda wildcards, threads: machine(wildcards).model_dump_json(),
        out=lambda wildcards, output: str(Path(output.manifest).parent),
        shots=shots_option,
    shell:
        "exec softtok train --spec {params.spec:q} --runtime {params.runtime:q} --model {input.model:q}"
        " --data {input.problems:q} --out {params.out:q} {params.shots} --attempt {resources.attempt} > {log:q} 2>&1"
