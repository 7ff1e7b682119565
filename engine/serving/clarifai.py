"""What Clarifai needs to serve a planned model on its GPUs, or on yours behind its local runner.

Documents as clarifai 12.5.0 reads them: compute cluster, node pool, deployment, the model's `config.yaml`, and
what its `model.py` starts vLLM with. Called by `headrace engine plan PROFILE --emit`; a test has the clarifai
package read and send them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.capacity import Gpus, Layout, Plan
from engine.capacity.gpus import GIB
from engine.errors import SetUpImpossible
from engine.profile import Profile
from engine.serving.command import Launch, ServeOptions, launches_of

IMAGE = "vllm/vllm-openai:v0.32.0"
"""The vLLM whose flags and memory are planned; requirements/engine-cuda.in pins the same."""

NO_USER = "YOUR_USER_ID"
NO_VERSION = "MODEL_VERSION_ID"
"""What stands where only the account, or an upload, can tell."""

_USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What can stand in an address as it is."""

_AWS: Mapping[tuple[str, int], str] = {
    ("A100-40", 8): "p4d.24xlarge",
    ("A100-80", 8): "p4de.24xlarge",
    ("H100", 8): "p5.48xlarge",
    ("H200", 8): "p5en.48xlarge",
    ("B200", 8): "p6-b200.48xlarge",
}
"""AWS's instances by their GPUs (torchx and dstack list them so). Clarifai calls its instances on AWS by AWS's
names, such as g5.xlarge (clarifai 12.5.0, utils/compute_presets.py); which it lends, `list-instances` tells."""

_CPUS_PER_GPU = 8
_CPU_MEMORY_PER_GPU = "32Gi"
"""Main processor and memory asked for with each GPU: one process of vLLM's, loading its share of the weights. A
choice, not planned or measured; the instances above have three times as many processors and eight times the memory."""

_PERFORMANCE = 4
"""`scheduling_choice` of what `clarifai model deploy` creates (clarifai 12.5.0, runners/models/model_builder.py)."""

_ON_DEMAND = 1
"""`capacity_types` of what `clarifai model deploy` creates (clarifai 12.5.0, utils/compute_presets.py)."""

_PRIVATE = 10
"""`visibility.gettable` of what only its owner sees (clarifai 12.5.0, utils/constants.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClarifaiOptions:
    """What is asked of a deployment beyond its plan."""

    user_id: str | None = None
    """The account; None: to be filled in."""
    app_id: str = "main"
    """The account's application that holds the model; `main` is what clarifai itself takes."""
    version_id: str | None = None
    """Version of the model that an upload has made; None: to be filled in."""
    cloud: str = "aws"
    region: str = "us-east-1"
    instance: str | None = None
    """Clarifai's id of an instance; None: AWS's with the planned GPUs, where there is one."""
    min_replicas: int = 1
    """Least replicas; 0 gives all GPUs back when no request comes."""
    max_replicas: int | None = None
    """Most replicas; None: as many as the plan's concurrency needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClarifaiSetUp:
    """A planned deployment, checked."""

    plan: Plan
    launch: Launch
    """Of the vLLM in a replica; its model and address are replaced by the model's own."""
    gpus: Gpus
    """Of one replica."""
    instance: str
    user_id: str
    app_id: str
    version_id: str
    cloud: str
    region: str
    min_replicas: int
    max_replicas: int
    num_threads: int
    """Requests that a replica takes at a time."""

    @property
    def model_id(self) -> str:
        """Return the model's id, in which clarifai allows no dot."""
        first = next(iter(self.plan.model.files))
        name = self.plan.model.name
        return _id(name if self.plan.precision == first else f"{name}-{self.plan.precision}")

    @property
    def model_url(self) -> str:
        """Return the address by which requests name the model."""
        return f"https://clarifai.com/{self.user_id}/{self.app_id}/models/{self.model_id}"

    @property
    def cluster_id(self) -> str:
        """Return the id of the compute cluster."""
        return _id(f"headrace-{self.cloud}-{self.region}")

    @property
    def nodepool_id(self) -> str:
        """Return the id of the node pool."""
        return _id(f"headrace-{self.instance}")

    @property
    def deployment_id(self) -> str:
        """Return the id of the deployment."""
        return f"headrace-{self.model_id}"


def set_up_clarifai(profile: Profile, plan: Plan, options: ClarifaiOptions) -> ClarifaiSetUp:
    """Return the deployment of a plan.

    Args:
        profile: Whose model is deployed; its `server_flags` are those of the vLLM in it.
        plan: The GPUs of one replica, and what is asked of all replicas together.
        options: What the plan does not say.

    Raises:
        SetUpImpossible: The plan does not fit, the user id is none, or something contradicts what is asked for.
    """
    assert plan.gpus is not None
    # Started inside the replica, whatever the address that its requests come by.
    inside = profile.model_copy(
        update={"base_url": "http://localhost:23333/v1", "replicas": (), "model": plan.model.name}
    )
    _check_layout(plan.layout)
    if options.user_id is not None and not _USER_ID.fullmatch(options.user_id):
        raise SetUpImpossible(
            f"--user-id {options.user_id!r} cannot stand in the model's address; give letters, digits, '-', '_'"
            " and '.' only, as Clarifai's settings show it"
        )
    (launch,) = launches_of(inside, plan, ServeOptions())
    least, most = _bounds(plan, options)
    return ClarifaiSetUp(
        plan=plan,
        launch=launch,
        gpus=plan.gpus,
        instance=options.instance or _instance(plan.gpus, options.cloud),
        user_id=options.user_id or NO_USER,
        app_id=options.app_id,
        version_id=options.version_id or NO_VERSION,
        cloud=options.cloud,
        region=options.region,
        min_replicas=least,
        max_replicas=most,
        num_threads=profile.max_in_flight,
    )


def _check_layout(layout: Layout | None) -> None:
    if layout is None:
        return
    if layout.replicas > 1:
        raise SetUpImpossible(
            "--replicas shares the GPUs of one machine out; replicas on Clarifai are whole instances: give the GPUs"
            " of one with --gpus, and --min-replicas and --max-replicas"
        )
    if layout.nodes > 1:
        raise SetUpImpossible(
            f"{layout.gpus_per_server} GPUs are {layout.nodes} machines; a replica on Clarifai is one instance: give"
            " the GPUs of one with --gpus, and --max-replicas for more of them"
        )


def _bounds(plan: Plan, options: ClarifaiOptions) -> tuple[int, int]:
    """Return the least and the most replicas.

    Raises:
        SetUpImpossible: The most are too few, for the concurrency or beside the least.
    """
    context, asked = plan.context_tokens, plan.wish.concurrency
    held = plan.requests_at_once(context) or 1
    needed = -(-asked // held)
    if options.max_replicas is None:
        return options.min_replicas, max(needed, options.min_replicas, 1)
    if options.max_replicas < options.min_replicas:
        raise SetUpImpossible(
            f"--max-replicas {options.max_replicas} is below --min-replicas {options.min_replicas}; raise the one"
            " or lower the other"
        )
    if options.max_replicas < needed:
        raise SetUpImpossible(
            f"{plan.reasons[0]}; --concurrency {asked} needs --max-replicas {needed}, not {options.max_replicas}"
        )
    return options.min_replicas, options.max_replicas


def _instance(gpus: Gpus, cloud: str) -> str:
    known = _AWS.get((gpus.gpu.name, gpus.count)) if cloud == "aws" else None
    if known is None:
        kind = f" --gpu {gpus.gpu.name}" if gpus.gpu.vendor is not None else ""
        raise SetUpImpossible(
            f"which instance of cloud {cloud!r} has {gpus} is not known; `clarifai list-instances --cloud {cloud}"
            f"{kind} --min-gpus {gpus.count}` lists Clarifai's: give its id with --instance"
        )
    return known


def compute_cluster(found: ClarifaiSetUp) -> dict[str, Any]:
    """Return compute_cluster.yaml, for `clarifai computecluster create`."""
    return {
        "compute_cluster": {
            "id": found.cluster_id,
            "description": f"{found.cloud} {found.region}, for Headrace",
            "cloud_provider": {"id": found.cloud},
            "region": found.region,
            "managed_by": "clarifai",
            "cluster_type": "dedicated",
            "visibility": {"gettable": _PRIVATE},
        }
    }


def nodepool(found: ClarifaiSetUp) -> dict[str, Any]:
    """Return nodepool.yaml, for `clarifai nodepool create`: an instance for each replica."""
    return {
        "nodepool": {
            "id": found.nodepool_id,
            "description": f"{found.gpus} each, for {found.plan.model.title}",
            "compute_cluster": {"id": found.cluster_id},
            "instance_types": [{"id": found.instance, "compute_info": compute_info(found)}],
            "node_capacity_type": {"capacity_types": [_ON_DEMAND]},
            "min_instances": found.min_replicas,
            "max_instances": found.max_replicas,
            "visibility": {"gettable": _PRIVATE},
        }
    }


def deployment(found: ClarifaiSetUp) -> dict[str, Any]:
    """Return deployment.yaml, for `clarifai deployment create`; delays in seconds, as `clarifai model deploy` has them."""
    return {
        "deployment": {
            "id": found.deployment_id,
            "description": found.plan.reasons[0],
            "autoscale_config": {
                "min_replicas": found.min_replicas,
                "max_replicas": found.max_replicas,
                "traffic_history_seconds": 600,
                "scale_down_delay_seconds": 300,
                "scale_up_delay_seconds": 300,
                "scale_to_zero_delay_seconds": 3600,
                # Two replicas do not fit into the GPUs of one instance.
                "disable_packing": True,
            },
            "worker": {
                "model": {
                    "id": found.model_id,
                    "model_version": {"id": found.version_id},
                    "user_id": found.user_id,
                    "app_id": found.app_id,
                }
            },
            "scheduling_choice": _PERFORMANCE,
            "nodepools": [{"id": found.nodepool_id, "compute_cluster": {"id": found.cluster_id}}],
            "visibility": {"gettable": _PRIVATE},
        }
    }


def model_config(found: ClarifaiSetUp) -> dict[str, Any]:
    """Return config.yaml of the model's folder."""
    own = {} if found.user_id == NO_USER else {"user_id": found.user_id}
    return {
        # Without user_id clarifai takes that of `clarifai login`.
        "model": {
            "id": found.model_id,
            "model_type_id": "any-to-any",
            **own,
            "app_id": found.app_id,
        },
        "build_info": {"image": IMAGE},
        "compute": {"instance": found.instance, "cloud": found.cloud, "region": found.region},
        "inference_compute_info": compute_info(found),
        "checkpoints": {
            "type": "huggingface",
            "repo_id": found.plan.file.repository,
            "when": "runtime",
        },
        "num_threads": found.num_threads,
    }


def server_set_up(found: ClarifaiSetUp) -> dict[str, Any]:
    """Return server.json beside model.py: flags of `vllm serve` after the model and address, and variables."""
    where = ("--host=", "--port=")
    flags = [flag for flag in found.launch.argv[3:] if not flag.startswith(where)]
    return {"flags": flags, "environment": dict(found.launch.environment)}


def compute_info(found: ClarifaiSetUp) -> dict[str, Any]:
    """Return what a replica needs of an instance; memory is that of one GPU, as clarifai counts it."""
    count, gpu = found.gpus.count, found.gpus.gpu
    # As `clarifai model init` has it: any kind of the maker, bounded by count and memory.
    kinds = {"nvidia": ["NVIDIA-*"], "amd": ["AMD-*"]}
    kind = {} if gpu.vendor is None else {"accelerator_type": kinds[gpu.vendor]}
    memory = int(_CPU_MEMORY_PER_GPU.removesuffix("Gi")) * count
    return {
        "cpu_limit": str(_CPUS_PER_GPU * count),
        "cpu_memory": f"{memory}Gi",
        "num_accelerators": count,
        **kind,
        # Rounded down: what the driver reports of a GPU is less than its nominal size.
        "accelerator_memory": f"{gpu.memory_bytes // GIB}Gi",
    }


def own_profile(profile: Profile, found: ClarifaiSetUp, name: str) -> dict[str, Any]:
    """Return a profile of the deployment, or of a local runner with the same model: both have one address.

    Args:
        profile: The profile that was planned with; sampling, switches and the key's variable are its own.
        found: The deployment.
        name: Name of the file, without its suffix.
    """
    # What planned it is not asked of it again.
    planned_with = {"deploy", "facts", "server_flags"}
    kept = profile.model_dump(mode="json", exclude_unset=True, exclude=planned_with)
    return {
        **kept,
        "name": name,
        "title": f"{found.plan.model.title} in {found.plan.precision.upper()} on {found.gpus}, by Clarifai",
        "model": found.model_url,
        "context_tokens": found.plan.context_tokens,
        "max_in_flight": found.num_threads * max(1, found.min_replicas),
        "data_sheet": {
            **kept.get("data_sheet", {}),
            "weaknesses": [
                "Requests pass Clarifai's gateway; that it hands on all their fields, such as the switch of thinking,"
                " is not confirmed.",
                "Where --min-replicas is 0, a request may have to wait until the weights have been fetched.",
            ],
        },
    }


def _id(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
