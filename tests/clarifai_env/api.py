"""A fake of Clarifai's gRPC API, on the clarifai package's own service: says yes, and prints what it was sent.

Run by the Python of .venv-clarifai. The first line of its output is its address; each later one is the name and the
JSON of a request.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from clarifai_grpc.grpc.api import resources_pb2, service_pb2, service_pb2_grpc
from clarifai_grpc.grpc.api.status import status_code_pb2, status_pb2
from google.protobuf.json_format import MessageToDict

GOOD = status_pb2.Status(code=status_code_pb2.SUCCESS)


def tell(*values):
    sys.stdout.write(" ".join(values) + "\n")
    sys.stdout.flush()


def note(request):
    sent = MessageToDict(request, preserving_proto_field_name=True)
    tell(type(request).__name__, json.dumps(sent))


def post_compute_clusters(_self, request, _context):
    note(request)
    return service_pb2.MultiComputeClusterResponse(
        status=GOOD, compute_clusters=request.compute_clusters
    )


def post_nodepools(_self, request, _context):
    note(request)
    return service_pb2.MultiNodepoolResponse(status=GOOD, nodepools=request.nodepools)


def post_deployments(_self, request, _context):
    note(request)
    return service_pb2.MultiDeploymentResponse(status=GOOD, deployments=request.deployments)


def get_app(_self, _request, _context):
    return service_pb2.SingleAppResponse(status=GOOD, app=resources_pb2.App(id="main"))


def get_user(_self, _request, _context):
    return service_pb2.SingleUserResponse(status=GOOD, user=resources_pb2.User(id="me"))


Api = type(
    "Api",
    (service_pb2_grpc.V2Servicer,),
    {
        "PostComputeClusters": post_compute_clusters,
        "PostNodepools": post_nodepools,
        "PostDeployments": post_deployments,
        "GetApp": get_app,
        "GetUser": get_user,
    },
)

server = grpc.server(ThreadPoolExecutor(4))
service_pb2_grpc.add_V2Servicer_to_server(Api(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
tell(f"http://127.0.0.1:{port}")
server.wait_for_termination()
