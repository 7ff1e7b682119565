"""Loads a model's folder as a runner does, and asks the model; prints one JSON object.

Run by the Python of .venv-clarifai: load_model.py FOLDER. Apart from read_model.py, since reading for an upload leaves
stand-ins of httpx and openai behind in the package's own modules.
"""

import json
import sys

from asked import ASKED
from clarifai.runners.models.model_builder import ModelBuilder
from clarifai.runners.models.openai_class import OpenAIModelClass

model = ModelBuilder(sys.argv[1], download_validation_only=True).create_model_instance()


class Stock(OpenAIModelClass):
    client = model.client
    model = model.model


try:
    found = {
        "most_tokens": model.max_seq_len,
        "live": model.handle_liveness_probe(),
        "answer": json.loads(model.openai_transport(json.dumps(ASKED))),
        "streamed": [
            json.loads(one)
            for one in model.openai_stream_transport(json.dumps({**ASKED, "stream": True}))
        ],
        "predicted": model.predict(prompt="Which colour?"),
        "generated": "".join(model.generate(prompt="Which colour?")),
        "stock": json.loads(Stock().openai_transport(json.dumps(ASKED))),
    }
finally:
    model.server.process.terminate()
sys.stdout.write("RESULT " + json.dumps(found) + "\n")
