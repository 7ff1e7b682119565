"""Runs the flow process-corpus in a process of its own; prints the name of the state it ends in.

`python -m tests.chaos.flow_process RUN_ID PIPELINE SOURCE SINK ENGINE_URL [resume]`
"""

import inspect
import sys

from flows.corpus import process_corpus, retry_failed


def main() -> None:
    run_id, pipeline, source, sink, engine_url, *resume = sys.argv[1:]
    whole = {
        "pipeline": pipeline,
        "source": source,
        "sink": sink,
        "engine_url": engine_url,
    }
    if not resume:
        state = process_corpus(**whole, run_id=run_id, return_state=True)
    elif "resume" in inspect.signature(process_corpus.fn).parameters:
        state = process_corpus(sink=sink, resume=run_id, return_state=True)
    else:
        state = retry_failed(run=run_id, sink=sink, return_state=True)
    sys.stdout.write(f"{state.name}: {state.message}\n")


if __name__ == "__main__":
    main()
