"""One peer of benchmarks/peers.py, run by the peer's own Python: `python peer_arm.py ARM JOB`.

JOB is a file of JSON: url, model, salt, in_flight, system (the system text), stages (each with name, prompt,
choices, max_tokens), rows (a Parquet, JSON or JSON Lines file of id and text) and folder (an empty one, where
rows are written). A prompt may name earlier stages in braces. Prints one line of JSON: rows, failed and the
seconds from after the imports until the rows are written.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]
Rows = list[dict[str, Any]]
TEMPERATURE = 0.0
TIMEOUT_S = 1200


def main() -> None:
    """Run the arm that is asked for."""
    arm, file = sys.argv[1:]
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    run = ARMS[arm]()
    started = time.monotonic()
    rows = run(job)
    seconds = time.monotonic() - started
    last = job["stages"][-1]["name"]
    failed = job["num_rows"] - sum(bool(row.get(last)) for row in rows)
    found = {"rows": len(rows), "failed": failed, "seconds": seconds}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def _loop(*, by_document: bool) -> Callable[[Job], Rows]:
    """Return the arm of asyncio and the openai client: stage by stage, or as many documents at once."""
    from openai import AsyncOpenAI

    async def ask(client: AsyncOpenAI, job: Job, stage: Job, row: dict[str, Any]) -> None:
        content = f"{row['text']}\n\nQuestion: {stage['prompt'].format(**row)}"
        answer = await client.chat.completions.create(
            model=job["model"],
            messages=[
                {"role": "system", "content": job["system"]},
                {"role": "user", "content": content},
            ],
            extra_body={"cache_salt": job["salt"]},
            **_options(stage),
        )
        row |= json.loads(answer.choices[0].message.content or "")

    async def documents(client: AsyncOpenAI, job: Job, rows: Rows) -> None:
        places = asyncio.Semaphore(job["in_flight"])

        async def one(row: dict[str, Any]) -> None:
            async with places:
                for stage in job["stages"]:
                    await ask(client, job, stage, row)

        await asyncio.gather(*map(one, rows))

    async def stages(client: AsyncOpenAI, job: Job, rows: Rows) -> None:
        places = asyncio.Semaphore(job["in_flight"])

        async def one(stage: Job, row: dict[str, Any]) -> None:
            async with places:
                await ask(client, job, stage, row)

        for stage in job["stages"]:
            await asyncio.gather(*(one(stage, row) for row in rows))

    async def work(job: Job, rows: Rows) -> None:
        async with AsyncOpenAI(base_url=job["url"], api_key="none", timeout=TIMEOUT_S) as client:
            await (documents if by_document else stages)(client, job, rows)

    def run(job: Job) -> Rows:
        rows = _read_lines(job)
        asyncio.run(work(job, rows))
        lines = [json.dumps(_without_text(row)) + "\n" for row in rows]
        (Path(job["folder"]) / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        return rows

    return run


def _daft() -> Callable[[Job], Rows]:
    """Return Daft's: a column of the data frame per stage."""
    import daft
    from daft.ai.openai.provider import OpenAIProvider
    from daft.functions import format as text
    from daft.functions import prompt
    from pydantic import Field, create_model

    def run(job: Job) -> Rows:
        provider = OpenAIProvider(base_url=job["url"], api_key="none", timeout=TIMEOUT_S)
        frame = daft.read_json(job["rows"])
        for stage in job["stages"]:
            name = stage["name"]
            field: Any = (str, Field(json_schema_extra={"enum": stage["choices"]}))
            question, names = _placeholders(stage["prompt"], "{}")
            answer = prompt(
                text(f"{{}}\n\nQuestion: {question}", *map(daft.col, ["text", *names])),
                return_format=create_model(name, **{name: field}),
                system_message=job["system"],
                provider=provider,
                model=job["model"],
                concurrency=job["in_flight"],
                on_error="log",
                use_chat_completions=True,
                max_tokens=stage["max_tokens"],
                temperature=TEMPERATURE,
                extra_body={"cache_salt": job["salt"]},
            )
            # Rows of a batch are sent all at once, whatever `concurrency` says: hence one in each.
            frame = frame.into_batches(1).with_column(name, answer.get(name))
        frame = frame.exclude("text").collect()
        frame.write_parquet(job["folder"])
        return list(frame.to_pylist())

    return run


def _curator() -> Callable[[Job], Rows]:
    """Return Curator's: one LLM per stage, each over the dataset of the one before."""
    _use_bundled_vocabularies()
    from bespokelabs import curator
    from datasets import Dataset

    def asker(job: Job, stage: Job) -> Callable[..., Any]:
        class Asker(curator.LLM):  # type: ignore[misc]
            def prompt(self, row: dict[str, Any]) -> list[dict[str, str]]:
                content = f"{row['text']}\n\nQuestion: {stage['prompt'].format(**row)}"
                return [
                    {"role": "system", "content": job["system"]},
                    {"role": "user", "content": content},
                ]

            def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
                return {**row, **json.loads(response)}

        asker: Callable[..., Any] = Asker(
            model_name=job["model"],
            backend="openai",
            # As a Pydantic class it would first ask a question without a limit, to see whether it may.
            generation_params={**_options(stage), "cache_salt": job["salt"]},
            backend_params={
                "base_url": job["url"],
                "api_key": "none",
                "max_concurrent_requests": job["in_flight"],
                "max_requests_per_minute": 1_000_000,
                "max_tokens_per_minute": 1_000_000_000,
                "request_timeout": TIMEOUT_S,
                "require_all_responses": False,
            },
        )
        return asker

    def run(job: Job) -> Rows:
        folder = Path(job["folder"])
        dataset = Dataset.from_json(job["rows"], cache_dir=str(folder / "datasets"))
        for stage in job["stages"]:
            dataset = asker(job, stage)(dataset, working_dir=str(folder / stage["name"])).dataset
        dataset.remove_columns("text").to_parquet(folder / "rows.parquet")
        return list(dataset)

    return run


def _docetl() -> Callable[[Job], Rows]:
    """Return DocETL's: a frame with a map per stage. The system text is its own."""
    _use_bundled_vocabularies()
    import docetl

    docetl.bypass_cache = True

    def run(job: Job) -> Rows:
        frame = docetl.read_json(job["rows"].replace(".jsonl", ".json"))
        for stage in job["stages"]:
            question, names = _placeholders(stage["prompt"], "\0")
            for name in names:
                question = question.replace("\0", f"{{{{ input.{name} }}}}", 1)
            choices = f"enum[{', '.join(stage['choices'])}]"
            frame = frame.map(
                name=stage["name"],
                prompt=f"{{{{ input.text }}}}\n\nQuestion: {question}",
                output={"schema": {stage["name"]: choices}, "mode": "structured_output"},
                model=f"openai/{job['model']}",
                timeout=TIMEOUT_S,
                skip_on_error=True,
                litellm_completion_kwargs={
                    "api_base": job["url"],
                    "api_key": "none",
                    "timeout": TIMEOUT_S,
                    "max_tokens": stage["max_tokens"],
                    "temperature": TEMPERATURE,
                    "extra_body": {"cache_salt": job["salt"]},
                },
            )
        frame.write_json(str(Path(job["folder"]) / "rows.json"), max_threads=job["in_flight"])
        return list(frame.collect(max_threads=job["in_flight"]))

    return run


def _use_bundled_vocabularies() -> None:
    """Point tiktoken to the vocabularies that litellm brings along, which it would fetch otherwise."""
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None
    assert litellm.origin is not None
    folder = Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)


def _options(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request says beside its messages."""
    name = stage["name"]
    schema = {
        "type": "object",
        "properties": {name: {"enum": stage["choices"]}},
        "required": [name],
        "additionalProperties": False,
    }
    return {
        "max_tokens": stage["max_tokens"],
        "temperature": TEMPERATURE,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": name, "schema": schema, "strict": True},
        },
    }


def _placeholders(prompt: str, mark: str) -> tuple[str, Sequence[str]]:
    """Return a prompt with marks in place of the stages it names, and their names in order."""
    from string import Formatter

    parts = list(Formatter().parse(prompt))
    names = [name for _, name, _, _ in parts if name]
    return "".join(f"{text}{mark if name else ''}" for text, name, _, _ in parts), names


def _read_lines(job: Job) -> Rows:
    lines = Path(job["rows"]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _without_text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "text"}


ARMS: Mapping[str, Callable[[], Callable[[Job], Rows]]] = {
    "openai": lambda: _loop(by_document=False),
    "openai by document": lambda: _loop(by_document=True),
    "daft": _daft,
    "curator": _curator,
    "docetl": _docetl,
}

if __name__ == "__main__":
    main()
