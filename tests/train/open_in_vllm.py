"""Greedy answers of vLLM as JSON: a policy's folder and prompts of token ids in, tokens and log p out."""

from __future__ import annotations

import json
import sys

from vllm import LLM, SamplingParams

TOKENS = 12


def main() -> None:
    """Writes to the file that the third word names; vLLM's own lines go to stdout."""
    policy, prompts, out = sys.argv[1:]
    engine = LLM(model=policy, dtype="float32", enforce_eager=True, max_model_len=64)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    given = [{"prompt_token_ids": ids} for ids in json.loads(prompts)]
    answers = []
    for request in engine.generate(given, greedy):
        (found,) = request.outputs
        ids = list(found.token_ids)
        logprobs = [at[token].logprob for token, at in zip(ids, found.logprobs, strict=True)]
        answers.append({"ids": ids, "logprobs": logprobs})
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"answers": answers, "chat": bool(engine.get_tokenizer().chat_template)}, file)


if __name__ == "__main__":
    main()
