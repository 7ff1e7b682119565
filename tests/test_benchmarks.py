"""The benchmarks run, in small; what they measure is in benchmarks/README.md."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer

from benchmarks import gpu_capacity
from benchmarks.limited_engine import Book, Rules, arguments
from benchmarks.pace_keeping import wait_for_calls
from engine import tiny
from engine.capacity import parse_gpus
from tests.corpora.make import write_video
from tests.corpora.pages import Page, Text, write_pages

ROOT = Path(__file__).resolve().parent.parent


def test_client_cost_gives_each_arm_its_figures_when_run_in_small():
    result = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.client_cost", "--requests=512", "--peer-requests=512",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert [arm["arm"] for arm in found["arms"]] == [
        "headrace streamed", "headrace whole", "openai streamed", "openai whole",
        "openai-aiohttp whole",
    ]  # fmt: skip
    assert all(arm["cpu_ms"] > 0 and arm["rss_end_mb"] > 0 for arm in found["arms"])


def test_pay_once_gives_each_arm_its_figures_when_run_in_small():
    result = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.pay_once",
            "--requests=128", "--objects=1000", "--repeats=1",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert [arm["arm"] for arm in found["arms"]] == ["batch", "ledger", "plan"]
    assert found["arms"][2]["shards"] == 63


def test_pace_keeping_breaks_no_limit_when_run_in_small():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.pace_keeping", "--seconds=12", "--burst-every=5"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    arms = json.loads(result.stdout.splitlines()[-1])["arms"]
    assert len(arms) == 6
    assert [arm["violations"] for arm in arms] == [0] * 6, arms
    assert all(arm["calls"] > 20 for arm in arms), arms
    # How much is used says little of so few seconds: a burst may take them all.
    assert all(0 <= arm["used"] <= 1 for arm in arms), arms


def test_pace_keeping_ends_when_its_process_dies_before_the_first_call():
    command = arguments(Rules(max_in_flight=1))
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as host,
        subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as worker,
    ):
        try:
            with pytest.raises(RuntimeError, match="has ended with 3"):
                wait_for_calls(host.stdout.readline().strip(), worker)
        finally:
            host.kill()


def test_limited_engine_has_figures_before_its_first_step_has_passed():
    figures = Book(Rules(max_in_flight=50)).figures(0.0)
    assert (figures["used"], figures["calls"]) == ({"in_flight": 0.0}, 0)


def test_resuming_reads_only_what_was_left_when_run_in_small():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.resuming", "--documents=20"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    small, large = json.loads(result.stdout.splitlines()[-1])["arms"]
    assert small["verdict"] == large["verdict"] == "complete"
    assert 0 < large["bytes_read"] < large["bytes"] / 2


def test_answer_about_a_corpus_is_right_when_run_in_small():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.corpus_answer", "--documents=6", "--growth=2"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for arm in json.loads(result.stdout.splitlines()[-1])["arms"]:
        assert arm["is_right"]
        assert arm["adds_up"]
        assert arm["verdict"] == "complete"
        assert arm["citations"] == arm["citations_right"] > 0


def test_listing_gives_each_arm_its_figures_when_run_in_small():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.listing", "--keys=25000", "--files=2500", "--repeats=1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert {arm["arm"]: arm["keys"] for arm in found["arms"]} == {
        "bucket": 25_000, "obstore": 25_000, "bucket with empty objects": 2500,
        "folder": 2500, "scandir": 2500,
    }  # fmt: skip
    assert all(arm["keys_per_s"] > 0 and arm["peak_mb_all"] > 0 for arm in found["arms"])
    assert found["bucket / obstore, CPU"] > 0


def test_video_reading_gives_each_arm_its_figures_when_run_in_small(tmp_path):
    film = write_video(tmp_path / "a.mp4", [(1.0, "One"), (1.0, "Two")])
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.video_reading", f"--film={film}", "--runs=1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    frames = {arm["arm"]: arm["frames"] for arm in found["arms"]}
    assert (frames["headrace reader"], frames["decode once"]) == (2, 20)
    assert frames["decode keyframes"] == frames["decode keyframes, same JPEGs"] > 100
    assert found["long_film_s"] > 300
    assert all(arm["median_cpu_s"] > 0 for arm in found["arms"])


def test_shapes_are_the_real_ones_when_served_on_a_gpu(tmp_path):
    text = gpu_capacity.overrides(layers=2, experts=384)["text_config"]
    # The weights of a layer of experts, as the model's own: 384 of 3 x 7168 x 2048.
    size = text["n_routed_experts"] * 3 * text["hidden_size"] * text["moe_intermediate_size"]
    assert size == 16_911_433_728
    # What is not overridden is the model's own already.
    tiny.write(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    served = config["text_config"] | text
    shape = gpu_capacity.model_facts(layers=2, experts=384).shape
    attention, experts = shape.attention, shape.experts
    assert (served["vocab_size"], served["num_hidden_layers"]) == (shape.vocabulary, shape.layers)
    assert served["kv_lora_rank"] + served["qk_rope_head_dim"] == tiny.LATENT_SIZE == 576
    assert (served["q_lora_rank"], served["qk_nope_head_dim"], served["v_head_dim"]) == (
        attention.q_lora_rank, attention.nope_dim, attention.value_dim,
    )  # fmt: skip
    assert (served["n_shared_experts"], served["first_k_dense_replace"]) == (
        experts.shared, experts.first_dense,
    )  # fmt: skip
    assert (served["intermediate_size"], served["num_attention_heads"]) == (
        shape.dense_size, attention.heads,
    )  # fmt: skip


@pytest.mark.parametrize(("reported", "within"), [(5_000_000, False), (9_900_000, True)])
def test_planner_is_held_within_2_percent_when_a_gpu_reports(reported, within):
    asked = Namespace(layers=2, experts=384, lengths=[4096], utilization=0.9)
    planned = gpu_capacity.planned_for(asked, parse_gpus("8xH100"))
    log = "Model loading took 41.0 GiB memory\nAvailable KV cache memory: 21.52 GiB\n"
    ratio = planned.engine_tokens / 9_900_000
    found = gpu_capacity.compared(planned, int(reported * ratio), log)
    assert found["within"] is within
    # 2 layers x 576 x 2 bytes.
    assert found["kv_bytes_per_token"] == 2304
    assert found["kv_tokens_by_memory"] == pytest.approx(21.52 * 2**30 / 2304)
    assert found["overhead_gib_found"] == pytest.approx(
        0.9 * 81_559 / 1024 - 41.0 - 21.52, abs=0.01
    )


def test_nothing_is_measured_and_that_is_said_when_there_is_no_gpu(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_capacity"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "nothing was measured" in result.stdout


def test_pdf_reading_compares_its_arms_over_the_files_that_all_open(tmp_path):
    texts = [Text(x=80, y=700 - 20 * n, text=f"Line {n} of a page of text.") for n in range(20)]
    for name, count in (("short.pdf", 2), ("long.pdf", 5)):
        write_pages(tmp_path / name, [Page(texts=texts)] * count)
    (tmp_path / "torn.pdf").write_bytes(b"%PDF-1.7\nnothing")
    result = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.pdf_reading", tmp_path, "--repeats=1",
            "--arms=headrace,headrace pool of 2,pypdfium2,pypdfium2 in 2 processes",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["files"], found["pages"]) == ("2 of 2", 7)
    assert [arm["arm"] for arm in found["arms"]] == [
        "headrace", "headrace pool of 2", "pypdfium2", "pypdfium2 in 2 processes",
    ]  # fmt: skip
    assert all(arm["pages_per_s"] > 0 and arm["rss_mb"] > 0 for arm in found["arms"])
    assert {arm["arm"]: arm["ratio"] for arm in found["arms"]}["pypdfium2"] == 1


def test_citation_check_scores_each_kind_and_change_when_run_in_small():
    result = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.citation_check", "--kinds=pdf,sheet", "--corpus=",
            "--num=400", "--lines=2000",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    arms = {arm["quotes"]: arm for arm in found["arms"]}
    assert {"all", "pdf", "sheet", "true: ellipsis", "altered: digit"} <= arms.keys()
    assert arms["all"]["true"] == arms["pdf"]["true"] + arms["sheet"]["true"] > 100
    assert arms["all"]["precision"] >= 0.99
    assert arms["all"]["recall"] >= 0.97
    assert found["2000 lines, s to make ready"] > 0


def test_row_order_counts_what_rows_share_when_there_is_no_engine(tmp_path):
    lines = ["id,port,name"]
    lines += [f"{n},P{n % 5},Airport number {n % 5} of a town" for n in range(100)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.row_order", "--no-engine",
            f"--table={tmp_path / 'table.csv'}", "--counted-rows=60", "--planned-rows=100",
            f"--tokenizer={_word_tokenizer(tmp_path)}",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    planned, given, shuffled = json.loads(result.stdout.splitlines()[-1])["arms"]
    assert planned["prompt"] == given["prompt"] == shuffled["prompt"]
    assert planned["least"] <= planned["unique one by one"] <= planned["consecutive"]
    assert planned["consecutive"] < given["unique one by one"] <= shuffled["consecutive"]
    assert planned["rows planned"] == 100
    assert planned["CPU s to plan"] > 0


def _word_tokenizer(folder: Path) -> Path:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    words = (folder / "table.csv").read_text(encoding="utf-8").replace(",", " ")
    tokenizer.train_from_iterator([words, "[L1] | :"], WordLevelTrainer(special_tokens=["[UNK]"]))
    tokenizer.save(str(folder / "words.json"))
    return folder / "words.json"


def test_vector_search_finds_the_nearest_when_run_in_small():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.vector_search", "--passages=2000", "--dims=64"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    arms = json.loads(result.stdout.splitlines()[-1])["arms"]
    assert [arm["arm"] for arm in arms] == ["200 passages", "2,000 passages"]
    assert all(arm["same_of_ten"] >= 0.95 for arm in arms)
