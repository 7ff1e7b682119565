"""vLLM's offline `LLM.chat` on recorded bodies; run by the engine's own Python, which has vLLM.

`python offline.py MODEL DTYPE CONTEXT MAX_SEQS BODIES` prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Answer all bodies in one call and print tokens and seconds."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    model, dtype, context, max_seqs, bodies_file = sys.argv[1:]
    bodies = json.loads(Path(bodies_file).read_text(encoding="utf-8"))
    llm = LLM(
        model=model,
        dtype=dtype,
        max_model_len=int(context),
        max_num_seqs=int(max_seqs),
        enforce_eager=True,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )
    sampling = [
        SamplingParams(
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            structured_outputs=StructuredOutputsParams(
                json=body["response_format"]["json_schema"]["schema"]
            ),
        )
        for body in bodies
    ]
    started = time.monotonic()
    answers = llm.chat([body["messages"] for body in bodies], sampling, use_tqdm=False)
    seconds = time.monotonic() - started
    tokens = sum(len(one.prompt_token_ids) + len(one.outputs[0].token_ids) for one in answers)
    cached = sum(one.num_cached_tokens or 0 for one in answers)
    found = {"tokens_per_s": tokens / seconds, "tokens": tokens, "cached": cached}
    sys.stdout.write("\n" + json.dumps({**found, "seconds": seconds, "process_s": None}) + "\n")


if __name__ == "__main__":
    main()
