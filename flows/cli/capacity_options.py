"""Options of the commands that plan or build a set-up, and what they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flows.capacity import Asked

GpusOption = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        metavar="SET",
        help="Such as 8xH200, or 8x96GiB; `found`: those of this machine. If left out: those, else the"
        " profile's.",
    ),
]
ContextOption = Annotated[
    int | None, typer.Option("--context", min=1, help="Longest prompt and answer, in tokens.")
]
ConcurrencyOption = Annotated[
    int, typer.Option("--concurrency", min=1, help="Requests of that length to hold at once.")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="File of the model, such as int4 or nvfp4.")
]
KvTypeOption = Annotated[
    str,
    typer.Option("--kv-dtype", help="Numbers of the KV cache: auto, bfloat16 or fp8."),
]
TpOption = Annotated[int | None, typer.Option("--tp", min=1, help="Tensor parallel size.")]
PpOption = Annotated[int | None, typer.Option("--pp", min=1, help="Pipeline parallel size.")]
DpOption = Annotated[int | None, typer.Option("--dp", min=1, help="Data parallel size.")]
DcpOption = Annotated[
    int | None,
    typer.Option("--dcp", min=1, help="Decode context parallel size: divides the cache."),
]
EpOption = Annotated[bool, typer.Option("--ep", help="Divide experts by their number.")]
ReplicasOption = Annotated[
    int, typer.Option("--replicas", min=1, help="Servers that share the GPUs, behind one profile.")
]
NodesOption = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Machines over which one server spreads.")
]
UtilizationOption = Annotated[
    float | None,
    typer.Option(
        "--utilization", min=0.1, max=1.0, help="Share of a GPU that vLLM takes; 0.92 by default."
    ),
]
TextOnlyOption = Annotated[
    bool,
    typer.Option("--text-only", help="Leave the model's vision part out: room for more cache."),
]
OverheadOption = Annotated[
    float | None,
    typer.Option("--overhead", min=0.0, help="GiB that vLLM itself takes of each GPU."),
]


def asked_of(
    *,
    gpus: str | None,
    context: int | None,
    concurrency: int,
    precision: str | None,
    kv_dtype: str,
    tp: int | None,
    pp: int | None,
    dp: int | None,
    dcp: int | None,
    ep: bool,
    replicas: int,
    nodes: int | None,
    utilization: float | None,
    text_only: bool,
    overhead: float | None,
) -> Asked:
    """Return what the options ask for.

    Raises:
        SetUpImpossible: The cache's type is none of vLLM's that are planned.
    """
    from engine.capacity import OVERHEAD_BYTES, UTILIZATION, Sizes, Wish, kv_type_of
    from flows.capacity import Asked

    wish = Wish(
        precision=precision,
        context_tokens=context,
        concurrency=concurrency,
        kv_type=kv_type_of(kv_dtype),
        sizes=Sizes(tp=tp, pp=pp, dp=dp, dcp=dcp, ep=ep, replicas=replicas, nodes=nodes),
        utilization=UTILIZATION if utilization is None else utilization,
        with_vision=not text_only,
        overhead_bytes=OVERHEAD_BYTES if overhead is None else round(overhead * 2**30),
    )
    return Asked(gpus=gpus, wish=wish)
