"""Serving on GPUs: the exact command, and a keeper that starts, waits, restarts and drains real processes."""

from __future__ import annotations

import json
import subprocess
import threading
import time

import httpx
import pytest

from config.load import load_profile, load_surroundings
from config.model_facts import load_model
from engine.capacity import Sizes, Wish, parse_gpus, plan
from engine.errors import PrerequisiteError, SetUpImpossible
from engine.server import _free_port as free_port
from engine.server import end_server, find_server
from engine.serving import Home, KeepRule, ServeOptions, kept_launches, launches_of
from tests.fakes import vllm_program

K25 = load_model("kimi-k2.5")
RULE = KeepRule(
    ready_s=30,
    every_s=0.1,
    deaf_looks=2,
    first_wait_s=0.1,
    most_wait_s=0.4,
    max_restarts=2,
    drain_s=10,
)


def planned(gpus="8xH200", sizes=None, **wish):
    return plan(K25, parse_gpus(gpus), Wish(sizes=Sizes(**(sizes or {})), **wish))


def command(found, **options):
    (launch,) = launches_of(load_profile("kimi-k2.5"), found, ServeOptions(**options))
    return launch


def test_command_is_that_of_the_recipe_when_the_gpus_are_its_own():
    assert command(planned()).shown() == (
        "vllm serve moonshotai/Kimi-K2.5 --host=127.0.0.1 --port=8000"
        " --served-model-name=moonshotai/Kimi-K2.5 --max-model-len=262144 --gpu-memory-utilization=0.92"
        " --tensor-parallel-size=8 --mm-encoder-tp-mode=data --trust-remote-code"
        " --tool-call-parser=kimi_k2 --reasoning-parser=kimi_k2 --enable-auto-tool-choice"
        " --enable-prompt-tokens-details --scheduling-policy=priority --shutdown-timeout=120"
    )


def test_command_has_what_was_asked_for_when_it_differs():
    found = planned(
        "16xH200",
        {"tp": 4, "dp": 4, "dcp": 4, "ep": True, "nodes": 1},
        kv_type="fp8",
        with_vision=False,
    )
    argv = command(found, speculate=True, offload_gib=200, weights="/models/k25", drain_s=5).argv
    assert argv[2] == "/models/k25"
    assert {
        "--data-parallel-size=4",
        "--decode-context-parallel-size=4",
        "--enable-expert-parallel",
        "--kv-cache-dtype=fp8",
        "--language-model-only",
        "--kv-offloading-size=200",
        "--shutdown-timeout=5",
    } <= set(argv)
    assert any(word.startswith("--speculative-config={") for word in argv)
    assert not any("mm-encoder" in word for word in argv)


def test_second_machine_computes_without_an_address_when_a_server_spreads_over_two():
    found = planned("16xH200")
    first = command(found, master_addr="10.0.0.1")
    second = command(found, master_addr="10.0.0.1", node_rank=1)
    assert {"--nnodes=2", "--node-rank=0", "--master-addr=10.0.0.1"} <= set(first.argv)
    assert "--pipeline-parallel-size=2" in first.argv
    assert {"--node-rank=1", "--headless"} <= set(second.argv)
    assert second.base_url is None
    assert not any(word.startswith("--port") for word in second.argv)


def test_nvfp4_brings_its_variables_and_fp8_cache_when_it_is_planned():
    launch = command(planned("4xGB200", precision="nvfp4"))
    assert launch.shown().startswith(
        "VLLM_USE_FLASHINFER_MOE_FP4=1 vllm serve nvidia/Kimi-K2.5-NVFP4"
    )
    assert "--kv-cache-dtype=fp8" in launch.argv


def test_replicas_have_their_own_port_and_gpus_when_they_share_a_machine():
    profile = load_profile("kimi-k2.5").model_copy(
        update={"replicas": ("http://localhost:8001/v1",)}
    )
    launches = launches_of(profile, planned("16xH200", {"replicas": 2}), ServeOptions())
    assert [launch.argv[4] for launch in launches] == ["--port=8000", "--port=8001"]
    assert [launch.environment["CUDA_VISIBLE_DEVICES"] for launch in launches] == [
        "0,1,2,3,4,5,6,7",
        "8,9,10,11,12,13,14,15",
    ]


@pytest.mark.parametrize(
    ("found", "options", "said"),
    [
        (planned("4xH200"), {}, "4xH200 do not hold Kimi K2.5 in INT4"),
        (planned("4xH200"), {}, "it fits with --gpus 8xH200"),
        (planned("8xH200", precision="mxfp4"), {}, "is for AMD GPUs"),
        (planned("8xH200", precision="ud-tq1_0"), {}, "is for llama.cpp, not vLLM"),
        (planned("16xH200", precision="bf16"), {}, "what is left does not do"),
        (
            planned("16xH200", precision="fp8"),
            {"master_addr": "h"},
            "give the folder or repository",
        ),
        (planned(), {"adapters": {"a": "/a"}}, "serves no LoRA adapters of Kimi K2.5"),
        (planned("16xH200"), {}, "are 2 machines (--nodes)"),
        (
            planned("16xH200"),
            {"master_addr": "h", "node_rank": 2},
            "--node-rank 2 is none of the 2",
        ),
        (
            planned("16xH200", {"replicas": 2}),
            {},
            "has 1 on this machine: copy it and add replicas",
        ),
    ],
)
def test_set_up_is_refused_with_its_reason_when_vllm_could_not_serve_it(found, options, said):
    with pytest.raises(SetUpImpossible) as caught:
        command(found, **options)
    assert said in str(caught.value)


def test_adapters_are_served_by_name_when_the_architecture_takes_them():
    small = load_model("smollm2-135m")
    found = plan(small, parse_gpus("1xH100"), Wish())
    profile = load_profile("kimi-k2.5").model_copy(update={"server_flags": ()})
    options = ServeOptions(adapters={"terse": "/a/terse", "legal": "/a/legal"})
    (launch,) = launches_of(profile, found, options)
    at = launch.argv.index("--lora-modules")
    assert launch.argv[at - 1 : at + 3] == (
        "--enable-lora", "--lora-modules", "terse=/a/terse", "legal=/a/legal",
    )  # fmt: skip


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_vllms_own_parser_takes_every_flag_when_commands_are_built():
    profile = load_profile("kimi-k2.5").model_copy(
        update={"replicas": ("http://localhost:8001/v1",)}
    )
    launches = [
        *launches_of(profile, planned("16xH200", {"replicas": 2}), ServeOptions(offload_gib=10)),
        *launches_of(profile, planned("16xH200"), ServeOptions(master_addr="h", node_rank=1)),
        *launches_of(
            profile, planned(with_vision=False, kv_type="fp8"), ServeOptions(speculate=True)
        ),
        *launches_of(profile, planned("4xGB200", {"dcp": 4}, precision="nvfp4"), ServeOptions()),
        *launches_of(
            profile,
            plan(load_model("smollm2-135m"), parse_gpus("1xH100"), Wish()),
            ServeOptions(adapters={"a": "/a"}),
        ),
    ]
    code = (
        "import json, sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "for argv in json.load(sys.stdin):\n"
        "    parser = make_arg_parser(FlexibleArgumentParser())\n"
        "    given = parser.parse_args(argv)\n"
        "    validate_parsed_serve_args(given)\n"
        "    print(given.tensor_parallel_size, given.decode_context_parallel_size, given.nnodes,"
        " given.shutdown_timeout)\n"
    )
    result = subprocess.run(
        [load_surroundings().engine_venv.absolute() / "bin" / "python", "-c", code],
        input=json.dumps([launch.argv[2:] for launch in launches]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[:-1] == [
        "8 1 1 120", "8 1 1 120", "8 1 2 120", "8 1 1 120", "4 4 1 120", "1 1 1 120",
    ]  # fmt: skip


class Kept:
    """A profile whose server is the stand-in for vLLM, kept in a thread of its own."""

    def __init__(self, folder, *, replicas=1, broken=None, rule=RULE):
        self.notes, self.rule = [], rule
        self.home = Home(
            venv=folder / "venv", cache=folder / "cache", environment={"PATH": "/usr/bin:/bin"}
        )
        if not self.home.venv.exists():
            vllm_program.install(self.home.venv, broken=broken)
        urls = [f"http://127.0.0.1:{free_port()}/v1" for _ in range(replicas)]
        self.profile = load_profile("kimi-k2.5").model_copy(
            update={"base_url": urls[0], "replicas": tuple(urls[1:])}
        )
        found = planned("16xH200" if replicas == 2 else "8xH200", {"replicas": replicas})
        self.launches = launches_of(self.profile, found, ServeOptions(drain_s=10))
        self.urls, self.error, self.thread = [url.removesuffix("/v1") for url in urls], None, None

    def start(self):
        return kept_launches(
            self.profile,
            self.launches,
            self.home,
            api_key=None,
            rule=self.rule,
            notify=self.notes.append,
        )

    def watch(self, keeper):
        def work():
            try:
                keeper.keep()
            except PrerequisiteError as exc:
                self.error = str(exc)

        self.thread = threading.Thread(target=work)
        self.thread.start()

    def state(self):
        return find_server(self.profile, self.home.cache)


def until(is_so, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def crash(url):
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"{url}/crash", timeout=10)


def test_server_is_started_again_when_it_crashes(tmp_path):
    kept = Kept(tmp_path)
    with kept.start() as keeper:
        kept.watch(keeper)
        first = kept.state()
        assert first.keeper_pid
        crash(kept.urls[0])
        until(lambda: (now := kept.state()) is not None and now.pid != first.pid)
    kept.thread.join()
    assert kept.error is None
    assert any("ended with code 7; starting it again in 0 s" in note for note in kept.notes)
    # What it said before it ended is not lost.
    previous = tmp_path / "cache" / "engine" / "kimi-k2.5.previous.log"
    assert "illegal memory access" in previous.read_text()


def test_server_is_started_again_when_it_hangs(tmp_path):
    kept = Kept(tmp_path)
    with kept.start() as keeper:
        first = kept.state()
        httpx.post(f"{kept.urls[0]}/deaf", timeout=10)
        kept.watch(keeper)
        until(lambda: (now := kept.state()) is not None and now.pid != first.pid, 40)
    kept.thread.join()
    assert any("did not answer 2 times in a row" in note for note in kept.notes)


def test_keeper_gives_up_with_the_logs_end_when_it_crashes_too_often(tmp_path):
    kept = Kept(tmp_path)
    with kept.start() as keeper:
        kept.watch(keeper)
        for _ in range(3):
            pid = kept.state().pid
            crash(kept.urls[0])
            until(
                lambda pid=pid: kept.error or ((now := kept.state()) is not None and now.pid != pid)
            )
        kept.thread.join(10)
    assert "after 2 restarts within 3600 s; it is left ended" in kept.error
    assert "illegal memory access" in kept.error
    waits = [note.rpartition(" in ")[2] for note in kept.notes if "starting it again" in note]
    assert waits == ["0 s", "0 s"]


def test_wait_is_doubled_up_to_a_limit_when_a_server_keeps_ending():
    from engine.serving.keeper import Keeper, _Kept

    class Ended:
        def stop(self):
            pass

        def log_tail(self):
            return "end"

    notes = []
    rule = KeepRule(first_wait_s=2, most_wait_s=10, max_restarts=4)
    keeper = Keeper([], rule, notes.append)
    kept = _Kept(command=type("C", (), {"name": "engine", "log": "x.log"})(), is_well=lambda: True)
    for _ in range(4):
        kept.child = Ended()
        keeper._again(kept, "ended")
    assert [note.rpartition(" in ")[2] for note in notes] == ["2 s", "4 s", "8 s", "10 s"]
    kept.child = Ended()
    with pytest.raises(PrerequisiteError, match="after 4 restarts"):
        keeper._again(kept, "ended")


def test_first_start_fails_at_once_with_the_reason_when_vllm_does_not_start(tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    kept = Kept(tmp_path, broken=broken)
    with pytest.raises(PrerequisiteError, match="no room for the KV cache"), kept.start():
        pass
    assert kept.state() is None
    assert not [note for note in kept.notes if "again" in note]


def test_request_under_way_is_finished_when_the_engine_is_ended(tmp_path):
    kept, answers = Kept(tmp_path), []
    with kept.start() as keeper:
        kept.watch(keeper)
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{kept.urls[0]}/v1/chat/completions", json={}, timeout=20).json()
            )
        )
        asking.start()
        until(lambda: httpx.get(f"{kept.urls[0]}/env", timeout=10).json()["under_way"] == 1)
    asking.join()
    kept.thread.join()
    assert answers == [{"done": True}]
    log = (tmp_path / "cache" / "engine" / "kimi-k2.5.log").read_text()
    assert "ended with 0 under way" in log
    assert not any("cut off" in note for note in kept.notes)


def test_one_replica_is_started_again_while_the_other_serves_when_one_crashes(tmp_path):
    kept = Kept(tmp_path, replicas=2)
    with kept.start() as keeper:
        kept.watch(keeper)
        shown = [httpx.get(f"{url}/env", timeout=10).json() for url in kept.urls]
        assert [one["devices"] for one in shown] == [
            "0,1,2,3,4,5,6,7",
            "8,9,10,11,12,13,14,15",
        ]
        assert kept.state().replicas == (kept.launches[1].base_url,)
        crash(kept.urls[1])
        assert httpx.get(f"{kept.urls[0]}/health", timeout=10).is_success
        until(lambda: sum("engine 2 of 2: ready" in note for note in kept.notes) == 2)
    kept.thread.join()
    assert kept.error is None


def test_installation_is_named_when_there_is_no_vllm(tmp_path):
    kept = Kept(tmp_path)
    kept.home = Home(
        venv=tmp_path / "none", cache=tmp_path / "cache", environment={"PATH": "/none"}
    )
    with pytest.raises(PrerequisiteError, match="headrace engine install"), kept.start():
        pass


def test_second_keeper_is_refused_when_one_runs(tmp_path):
    kept = Kept(tmp_path)
    with kept.start():
        with (
            pytest.raises(
                PrerequisiteError, match="already runs at .* headrace engine stop kimi-k2.5"
            ),
            kept.start(),
        ):
            pass
        assert kept.state() is not None


def test_key_is_in_no_command_line_when_the_server_asks_for_one(tmp_path):
    kept = Kept(tmp_path)
    with kept_launches(
        kept.profile,
        kept.launches,
        kept.home,
        api_key="sk-123456",
        rule=RULE,
        notify=kept.notes.append,
    ):
        state = kept.state()
        words = subprocess.run(
            ["ps", "-ewwo", "args"], capture_output=True, text=True, check=True
        ).stdout
        assert "kimi" in words.lower()
        assert "sk-123456" not in words
        assert state is not None
    assert not end_server(kept.profile, kept.home.cache)
