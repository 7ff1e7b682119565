"""Reads a model's folder as `clarifai model upload` does; prints one JSON object.

Run by the Python of .venv-clarifai: read_model.py FOLDER.
"""

import json
import sys

from clarifai.runners.models.model_builder import ModelBuilder
from google.protobuf.json_format import MessageToDict

builder = ModelBuilder(sys.argv[1])
builder.create_dockerfile()
found = {
    "model": MessageToDict(builder.model_proto, preserving_proto_field_name=True),
    "compute": MessageToDict(builder.inference_compute_info, preserving_proto_field_name=True),
    "methods": sorted(one.name for one in builder.get_method_signatures(mocking=True)),
    "num_threads": builder.config["num_threads"],
}
sys.stdout.write("RESULT " + json.dumps(found) + "\n")
