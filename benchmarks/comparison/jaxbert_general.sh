# Arguments: updates, seed.
jaxbert train --config=tinybert_general --workdir=general --config.seed="$2" \
    --config.corpus=text:texts.txt --config.num_documents=0 \
    --config.student.init=random --config.general.steps="$1"
jaxbert export general --to=general_student --format=huggingface
