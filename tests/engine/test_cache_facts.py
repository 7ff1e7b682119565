"""What a vLLM server tells of its KV cache in /metrics."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from engine.server import CacheFacts, cache_facts, cache_tokens


@pytest.fixture
def serve():
    servers = []

    def serving(text: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield serving
    for server in servers:
        server.shutdown()
        server.server_close()


def test_size_of_the_cache_and_of_its_blocks_are_read_when_told(serve):
    url = serve('# HELP x\nvllm:cache_config_info{block_size="32",num_gpu_blocks="376"} 1.0\n')
    assert cache_facts(url) == CacheFacts(num_tokens=12_032, block_tokens=32)
    assert cache_tokens(url) == 12_032


@pytest.mark.parametrize("text", ["", 'vllm:cache_config_info{block_size="None"} 1.0\n'])
def test_nothing_is_told_of_the_cache_when_the_server_does_not_say(serve, text):
    url = serve(text)
    assert cache_facts(url) is None
    assert cache_tokens(url) is None
