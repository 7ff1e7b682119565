"""How a model is divided over GPUs: sizes that vLLM accepts, and the ones to take where none are given."""

from __future__ import annotations

from dataclasses import dataclass

from engine.capacity.facts import LatentAttention, Shape
from engine.capacity.gpus import Gpus
from engine.errors import SetUpImpossible

GPUS_PER_NODE = 8
"""GPUs of a machine, where the number of machines is not given: HGX and DGX have eight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Parallel sizes of one set-up. `tp * pp * dp * replicas` is the number of GPUs."""

    tp: int
    """Tensor parallel: GPUs that divide each layer."""
    pp: int = 1
    """Pipeline parallel: groups that divide the layers."""
    dp: int = 1
    """Data parallel: groups inside one server that divide the requests; each keeps a cache of its own."""
    dcp: int = 1
    """Decode context parallel: GPUs of a tensor-parallel group that divide each sequence's cache."""
    ep: bool = False
    """Whether experts stay whole and are divided by their number over all GPUs of a server."""
    replicas: int = 1
    """Servers that know nothing of each other, behind one profile."""
    nodes: int = 1
    """Machines over which one server spreads."""

    @property
    def gpus_per_server(self) -> int:
        """Return the GPUs of one server."""
        return self.tp * self.pp * self.dp


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Parallel sizes as a person gives them; None: to be chosen."""

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    dcp: int | None = None
    ep: bool = False
    replicas: int = 1
    nodes: int | None = None


def lay_out(shape: Shape, gpus: Gpus, sizes: Sizes) -> Layout:
    """Return the layout with what was given, and the rest chosen.

    Tensor parallelism takes what a server has on one machine; over several machines each is a pipeline
    stage, as the recipes have it (K2 on 16 H800: TP8, PP2).

    Raises:
        SetUpImpossible: The sizes contradict each other, the model or the number of GPUs.
    """
    if gpus.count % sizes.replicas:
        raise SetUpImpossible(
            f"{gpus.count} GPUs cannot be shared out to {sizes.replicas} replicas evenly; give a count"
            f" that {sizes.replicas} divides"
        )
    per_server = gpus.count // sizes.replicas
    dp, pp = sizes.dp or 1, sizes.pp or 1
    nodes = sizes.nodes or -(-per_server // GPUS_PER_NODE)
    if per_server % nodes:
        raise SetUpImpossible(
            f"{per_server} GPUs of a server cannot be shared out to {nodes} machines evenly; change --nodes"
            " or --gpus"
        )
    if sizes.tp is None and sizes.pp is None and sizes.dp is None and nodes > 1:
        pp = nodes
    tp = sizes.tp or max(1, per_server // (dp * pp))
    layout = Layout(
        tp=tp,
        pp=pp,
        dp=dp,
        dcp=sizes.dcp or 1,
        ep=sizes.ep,
        replicas=sizes.replicas,
        nodes=nodes,
    )
    _check(shape, gpus, layout)
    return layout


def _check(shape: Shape, gpus: Gpus, layout: Layout) -> None:
    """Check what vLLM 0.32 checks when it starts (config/parallel.py, config/model.py).

    Raises:
        SetUpImpossible: A size is wrong; the message says which, and which would do.
    """
    heads = shape.attention.heads
    if heads % layout.tp:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and n <= gpus.count]
        raise SetUpImpossible(
            f"--tp {layout.tp} does not divide the model's {heads} attention heads; tensor parallel"
            f" sizes for {gpus}: {', '.join(map(str, fitting))}"
        )
    used = layout.gpus_per_server * layout.replicas
    if used != gpus.count:
        raise SetUpImpossible(
            f"tp {layout.tp} x pp {layout.pp} x dp {layout.dp} x {layout.replicas} replicas are {used} GPUs,"
            f" {gpus} are {gpus.count}; change one of --tp, --pp, --dp, --replicas or --gpus"
        )
    if layout.tp % layout.dcp:
        raise SetUpImpossible(
            f"--dcp {layout.dcp} does not divide --tp {layout.tp}; decode context parallelism shares the"
            " GPUs of tensor parallelism"
        )
    if layout.dcp > 1 and not isinstance(shape.attention, LatentAttention):
        most = layout.tp // shape.attention.kv_heads
        if layout.dcp > most:
            raise SetUpImpossible(
                f"--dcp {layout.dcp}: the model's {shape.attention.kv_heads} heads of keys leave at most"
                f" {max(1, most)} at --tp {layout.tp}"
            )
    if layout.pp > shape.layers:
        raise SetUpImpossible(f"--pp {layout.pp} exceeds the model's {shape.layers} layers")
    if layout.ep and shape.experts is None:
        raise SetUpImpossible("--ep divides experts, and the model has none; leave it out")
    if layout.gpus_per_server % layout.nodes:
        raise SetUpImpossible(
            f"{layout.gpus_per_server} GPUs of a server cannot be shared out to {layout.nodes} machines"
            " evenly; change --nodes"
        )
