# One job runs all modes of an inference set on one test set, because loading a model takes longer than a small mode.
rule evaluate:
    input:
        checkpoint=f"{RUN}/checkpoint",
        model=ancient(lambda wildcards: run_of(wildcards).untouched_model),
        problems=ancient(lambda wildcards: evaluation_of(wildcards).data.path),
        shots=ancient(
            lambda wildcards: evaluation_of(wildcards).shots_path(
                run_of(wildcards).model
            )
        ),
    output:
        rows=f"{RUN}/{EVALUATION}.parquet",
        entropy=f"{RUN}/{EVALUATION}.entropy.csv",
        thoughts=f"{RUN}/{EVALUATION}.thoughts.parquet",
    log:
        aside("logs", f"{RUN}/{EVALUATION}.log"),
    benchmark:
        aside("benchmarks", f"{RUN}/{EVALUATION}.tsv")
    priority: run_priority
    conda:
        "../../environment.yml"
    threads: lambda wildcards: evaluation_machine(wildcards).threads
    resources:
        mem_mb=evaluation_memory_mb,
        runtime=lambda wildcards: evaluation_machine(wildcards).runtime_min,
        gpu=gpus,
        attempt=lambda wildcards, attempt: attempt,
    params:
        command="evaluate",
        spec=lambda wildcards: evaluation_of(wildcards).json,
        runtime=lambda wildcards, threads: evaluation_machine(
            wildcards
        ).model_dump_json(),
        run=lambda wildcards, input: str(Path(input.checkpoint).parent),
        shots=shots_option,
    shell:
        "exec softtok {params.command} --spec {params.spec:q} --runtime {params.runtime:q} --run {params.run:q}"
        " --data {input.problems:q} --out {output.rows:q} {params.shots}"
        " --attempt {resources.attempt} > {log:q} 2>&1"


use rule evaluate as choices with:
    input:
        checkpoint=f"{RUN}/checkpoint",
        model=ancient(lambda wildcards: run_of(wildcards).untouched_model),
        problems=ancient(lambda wildcards: choices_of(wildcards).data.path),
        shots=[],  # multiple choice has prompts of its own
    output:
        rows=f"{RUN}/{CHOICES}.parquet",
    log:
        aside("logs", f"{RUN}/{CHOICES}.log"),
    benchmark:
        aside("benchmarks", f"{RUN}/{CHOICES}.tsv")
    params:
        command="choices",
        spec=lambda wildcards: choices_of(wildcards).json,
