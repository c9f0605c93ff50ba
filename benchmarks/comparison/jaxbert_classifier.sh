# Arguments: updates a stage, seed.
jaxbert train --config=tinybert_task --workdir=task --config.seed="$2" \
    --config.task.name=reviews --config.task.source=tsv:train.tsv --config.task.dev=tsv:dev.tsv \
    --config.task.test=tsv:test.tsv --config.task.columns=text --config.task.labels=negative,positive \
    --config.phases=finetune,intermediate,prediction --config.init_from=start \
    --config.finetune.steps="$1" --config.intermediate.steps="$1" --config.prediction.steps="$1"
jaxbert eval --workdir=task
