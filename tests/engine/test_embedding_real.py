"""Vectors from vLLM itself: the embedded engine's model, served as one that gives them."""

import subprocess
import time
from typing import NamedTuple

import httpx
import pytest

from config.load import child_environment, load_surroundings
from engine.batch import num_dims
from engine.local_models import LOCAL_MODELS
from engine.profile import profile_for_url
from flows.services import free_ports
from tests.engine.test_batch import endpoint_of
from tests.engine.test_embedding import Calls, embed
from tests.fakes.agent_server import AgentServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A server of it; the URL."""
    where, (port,) = load_surroundings(), free_ports(1)
    python = where.engine_venv.absolute() / "bin" / "python"
    folder = LOCAL_MODELS["embedded"].prepare(python, where.cache, child_environment(), print)
    argv = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}",
        "--served-model-name=vectors", "--runner=pooling", "--convert=embed", "--enforce-eager",
        "--dtype=float32", "--max-model-len=512", "--host=127.0.0.1", f"--port={port}",
    ]  # fmt: skip
    work = tmp_path_factory.mktemp("vllm")
    variables = child_environment(VLLM_CPU_KVCACHE_SPACE="1", PYTHONSAFEPATH="1")
    with (work / "log").open("w") as log:
        process = subprocess.Popen(argv, cwd=work, env=variables, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, work / "log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _wait(url, process, log):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if httpx.get(url).is_success:
                return
        except httpx.HTTPError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-2000:])


class Address(NamedTuple):
    """Where a host is."""

    url: str


def test_vectors_of_a_real_server_have_one_length_and_are_the_same_for_the_same_text(host):
    profile = profile_for_url(host)
    with endpoint_of(None, profile) as endpoint:
        dims = num_dims(endpoint)
    assert dims == 576
    texts = ["The crane stopped.", "Fog.", "The crane stopped.", "long " * 3000]
    with AgentServer(Calls()) as agents:
        result, tool, (event,) = embed(agents, Address(host), texts, profile=profile, num_dims=dims)
    assert result.outcome == "succeeded", result.error
    first, other, again, _ = tool.vectors
    assert list(first) == pytest.approx(list(again), abs=1e-4)
    assert list(first) != pytest.approx(list(other), abs=1e-2)
    # The long one was cut to what the model takes.
    assert 400 < event.usage.prompt_tokens < 560
