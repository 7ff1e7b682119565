"""Commands about engines: the environment, what a model needs, serving it, its state and its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config.load import child_environment, load_profile, load_surroundings
from flows.cli.app import (
    AsJson,
    app,
    complete_profiles,
    end_on_no,
    exit_codes,
    note,
    print_json,
    print_lines,
    print_verdict,
)
from flows.cli.capacity_options import (
    ConcurrencyOption,
    ContextOption,
    DcpOption,
    DpOption,
    EpOption,
    GpusOption,
    KvTypeOption,
    NodesOption,
    OverheadOption,
    PpOption,
    PrecisionOption,
    ReplicasOption,
    TextOnlyOption,
    TpOption,
    UtilizationOption,
    asked_of,
)
from flows.cli.clarifai_options import (
    CloudOption,
    EmitOption,
    InstanceOption,
    MaxReplicasOption,
    MinReplicasOption,
    ModelVersionOption,
    OverwriteOption,
    RegionOption,
    UserIdOption,
    clarifai_options,
    require_emit,
)

if TYPE_CHECKING:
    from engine.profile import Profile

engine_app = typer.Typer(
    name="engine",
    help="Engines: what a model needs, serving it here, its state and its end.",
    no_args_is_help=True,
)
app.add_typer(engine_app, rich_help_panel="This machine")

ProfileArgument = Annotated[
    str,
    typer.Argument(
        help="Profile of a model that this machine serves.", autocompletion=complete_profiles
    ),
]


@engine_app.command()
def install(as_json: AsJson = False) -> None:
    """Create the engine's own environment from locked versions; 1 to 2 minutes, 3 to 6 GB.

    Examples:
      headrace engine install
    """
    from engine.install import install as install_engine

    with exit_codes():
        surroundings = load_surroundings()
        venv, cache = surroundings.engine_venv, surroundings.cache
        install_engine(venv, cache, child_environment())
        if as_json:
            print_json({"environment": str(venv), "cache": str(cache), "installed": True})
        else:
            print_lines([f"installed in {venv}", "next: headrace engine serve"])


@engine_app.command("plan")
def plan_capacity(
    profile: ProfileArgument = "kimi-k2.5",
    gpus: GpusOption = None,
    context: ContextOption = None,
    concurrency: ConcurrencyOption = 1,
    precision: PrecisionOption = None,
    kv_dtype: KvTypeOption = "auto",
    tp: TpOption = None,
    pp: PpOption = None,
    dp: DpOption = None,
    dcp: DcpOption = None,
    ep: EpOption = False,
    replicas: ReplicasOption = 1,
    nodes: NodesOption = None,
    utilization: UtilizationOption = None,
    text_only: TextOnlyOption = False,
    overhead: OverheadOption = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Write a sketch of one GPU's memory to this file.")
    ] = None,
    emit: EmitOption = None,
    user_id: UserIdOption = None,
    model_version: ModelVersionOption = None,
    instance: InstanceOption = None,
    cloud: CloudOption = "aws",
    region: RegionOption = "us-east-1",
    min_replicas: MinReplicasOption = 1,
    max_replicas: MaxReplicasOption = None,
    overwrite: OverwriteOption = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a model fits on GPUs, with how long a context, for how many requests at once.

    By formula from what is published of the model; nothing is started. Where the profile's server
    runs, its own count of cache tokens stands beside the planned one. With --emit, the files of a
    deployment on Clarifai are written, with the planned limits; none where it does not fit. Exits with 1
    where it does not fit.

    Examples:
      headrace engine plan kimi-k2.5 --gpus 8xH200

      headrace engine plan kimi-k2.5 --gpus 4xGB200 --precision nvfp4 --context 131072 --concurrency 8

      headrace engine plan kimi-k2.5 --gpus 8xH200 --dcp 8 --svg memory.svg --json

      headrace engine plan clarifai --emit deploy --user-id me --max-replicas 2
    """
    from engine.capacity import as_json as plan_json
    from flows.capacity import capacity, served_tokens, with_served
    from flows.capacity_sketch import draw_capacity
    from flows.clarifai import emit as emit_files
    from flows.cli.capacity_text import plan_lines

    with exit_codes():
        at_defaults = cloud == "aws" and region == "us-east-1" and min_replicas == 1
        changed = None if at_defaults else True
        require_emit(
            emit, user_id, model_version, instance, max_replicas, overwrite or None, changed
        )
        asked = asked_of(
            gpus=gpus, context=context, concurrency=concurrency, precision=precision, kv_dtype=kv_dtype,
            tp=tp, pp=pp, dp=dp, dcp=dcp, ep=ep, replicas=replicas, nodes=nodes, utilization=utilization,
            text_only=text_only, overhead=overhead,
        )  # fmt: skip
        known = load_profile(profile)
        found = capacity(known, asked)
        if svg is not None:
            _write(svg, draw_capacity(found))
            note(f"wrote {svg}")
        if emit is not None and found.starts is False:
            note("no files are written: it does not fit")
        elif emit is not None:
            options = clarifai_options(
                user_id=user_id, version_id=model_version, cloud=cloud, region=region, instance=instance,
                min_replicas=min_replicas, max_replicas=max_replicas,
            )  # fmt: skip
            emitted = emit_files(known, found, options, emit, overwrite=overwrite)
            if as_json:
                print_json({**plan_json(found), "emitted": emitted.as_json()})
            else:
                print_lines([found.reasons[0], *emitted.lines()])
            return
        shown = with_served(found, served_tokens(known))
        if as_json:
            print_json(shown)
        else:
            print_verdict(plan_lines(shown))
        end_on_no(is_no=found.fits is False)


def _write(file: Path, text: str) -> None:
    from config.errors import ConfigError

    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{file} cannot be written: {exc.strerror}; check the path") from exc


@engine_app.command()
def serve(
    profile: ProfileArgument = "embedded",
    gpus: GpusOption = None,
    context: ContextOption = None,
    precision: PrecisionOption = None,
    kv_dtype: KvTypeOption = "auto",
    tp: TpOption = None,
    pp: PpOption = None,
    dp: DpOption = None,
    dcp: DcpOption = None,
    ep: EpOption = False,
    replicas: ReplicasOption = 1,
    nodes: NodesOption = None,
    node_rank: Annotated[
        int, typer.Option("--node-rank", min=0, help="Number of this machine, from 0.")
    ] = 0,
    master_addr: Annotated[
        str | None, typer.Option("--master-addr", help="Address of machine 0, for --nodes.")
    ] = None,
    utilization: UtilizationOption = None,
    text_only: TextOnlyOption = False,
    overhead: OverheadOption = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Folder or repository of the weights.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="NAME=FOLDER", help="A LoRA adapter by name; repeatable."),
    ] = None,
    speculate: Annotated[
        bool, typer.Option("--speculate", help="Speculative decoding, where one is published.")
    ] = False,
    offload: Annotated[
        float, typer.Option("--offload", min=0.0, help="GiB of main memory for more KV cache.")
    ] = 0.0,
    drain: Annotated[
        int, typer.Option("--drain", min=1, help="Seconds for requests under way at the end.")
    ] = 120,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command, and start nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it running in the background.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start an engine and watch over it until Ctrl-C; runs find it by themselves.

    For a model that comes along nothing else is needed. For one on GPUs the exact `vllm serve` command is
    built for the GPUs found, or for --gpus, and refused where the planner says that it does not fit. A
    server that crashes or hangs is started again; at the end requests under way are finished first.

    Examples:
      headrace engine serve

      headrace engine serve kimi-k2.5 --dry-run --gpus 8xH200

      headrace engine serve kimi-k2.5 --dcp 8 --text-only --detach
    """
    from flows.serving import Serving, command_lines, detach_server, serve_engine

    with exit_codes(lambda: "engine ended"):
        known = load_profile(profile)
        asked = asked_of(
            gpus=gpus, context=context, concurrency=1, precision=precision, kv_dtype=kv_dtype,
            tp=tp, pp=pp, dp=dp, dcp=dcp, ep=ep, replicas=replicas, nodes=nodes, utilization=utilization,
            text_only=text_only, overhead=overhead,
        )  # fmt: skip
        serving = Serving(
            profile=known, asked=asked, weights=weights, lora=tuple(lora or ()), speculate=speculate,
            offload_gib=offload, node_rank=node_rank, master_addr=master_addr, drain_s=drain,
        )  # fmt: skip
        if dry_run:
            lines = command_lines(serving)
            if as_json:
                print_json({"commands": lines})
            else:
                print_lines(lines)
            return

        def show(address: str | None, log: str | None) -> None:
            if as_json:
                print_json({"address": address, "log": log})
            else:
                print_lines([f"{address or 'this machine computes'}   (log: {log})"])

        if detach:
            show(*detach_server(serving, note))
        else:
            serve_engine(serving, note, show)


@engine_app.command()
def status(profile: ProfileArgument = "embedded", as_json: AsJson = False) -> None:
    """Tell whether the engine runs, where, and what it holds.

    Examples:
      headrace engine status --json
    """
    from engine.install import installed_megabytes
    from engine.server import cache_tokens, find_server
    from flows.terminal import print_facts

    with exit_codes():
        served, surroundings = _served(profile), load_surroundings()
        state = find_server(served, surroundings.cache)
        shown: dict[str, Any] = {
            "running": state is not None,
            "address": state.base_url if state else None,
            "replicas": list(state.replicas) if state else [],
            "model": state.model if state else served.model,
            "pid": state.pid if state else None,
            "watched_by": (state.keeper_pid or None) if state else None,
            "log": state.log if state else None,
            "kv_cache_tokens": cache_tokens(state.base_url) if state else None,
            "environment": str(surroundings.engine_venv),
            "environment_megabytes": installed_megabytes(surroundings.engine_venv),
        }
        if as_json:
            print_json(shown)
            return
        facts = {name.replace("_", " "): value for name, value in shown.items() if value}
        print_facts({**facts, "next": _next(shown, profile, surroundings.engine_venv)}, width=22)


def _next(shown: dict[str, Any], profile: str, venv: Path) -> str:
    named = "" if profile == "embedded" else f" {profile}"
    if shown["running"]:
        return f"headrace engine stop{named}"
    return f"headrace engine serve{named}" if venv.exists() else "headrace engine install"


@engine_app.command()
def stop(profile: ProfileArgument = "embedded", as_json: AsJson = False) -> None:
    """End the engine, whoever started it; one that is watched over finishes its requests first.

    Examples:
      headrace engine stop
    """
    from engine.server import end_server

    with exit_codes():
        ended = end_server(_served(profile), load_surroundings().cache)
        if as_json:
            print_json({"ended": ended})
        else:
            print_lines(["engine ended" if ended else "no engine was running"])


def _served(name: str) -> Profile:
    """Return a profile that this machine can serve.

    Raises:
        ConfigError: It names an engine elsewhere.
    """
    from config.errors import ConfigError
    from engine.local_models import LOCAL_MODELS

    profile = load_profile(name)
    if profile.serve is None and (profile.facts is None or profile.deploy is not None):
        raise ConfigError(
            f"profile {name!r} is an engine elsewhere; this machine serves"
            f" {', '.join(LOCAL_MODELS)}, and on GPUs profiles with `facts`, such as kimi-k2.5"
        )
    return profile
