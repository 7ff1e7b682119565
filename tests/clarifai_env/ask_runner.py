"""Asks a local runner over gRPC as Clarifai does, once it is up; prints one JSON object.

Run by the Python of .venv-clarifai: ask_runner.py PORT.
"""

import json
import sys

import grpc
from asked import ASKED
from clarifai.client.model_client import ModelClient

port = int(sys.argv[1])
grpc.channel_ready_future(grpc.insecure_channel(f"127.0.0.1:{port}")).result(timeout=100)
answer = ModelClient.from_local_grpc(port=port).openai_transport(msg=json.dumps(ASKED))
sys.stdout.write("RESULT " + json.dumps({"answer": json.loads(answer)}) + "\n")
