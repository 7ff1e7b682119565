"""The benchmarks run, in small; what they measure is in benchmarks/README.md."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu_capacity
from engine import tiny
from tests.corpora.make import write_video

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


def test_checkpoint_has_the_real_shapes_when_written_for_a_gpu(tmp_path):
    gpu_capacity.write_checkpoint(tmp_path / "model", layers=2, experts=384)
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    # The weights of a layer of experts, as the model's own: 384 of 3 x 7168 x 2048.
    size = text["n_routed_experts"] * 3 * text["hidden_size"] * text["moe_intermediate_size"]
    assert size == 16_911_433_728
    assert tiny.LATENT_SIZE == 576
