"""The planner: sizes to the byte, cache to the token, one verdict for each impossible wish."""

from __future__ import annotations

import pytest

from config.load import known_profiles, load_profile
from config.model_facts import known_models, load_model
from engine import tiny
from engine.capacity import Sizes, Wish, as_json, on_cpu, parse_gpus, plan, ways_out
from engine.capacity.cache import bytes_per_token
from engine.capacity.gpus import CATALOGUE, GIB, kind_of, read_listing
from engine.capacity.weights import computed_by_part, numbers_of
from engine.errors import SetUpImpossible

K25 = load_model("kimi-k2.5")


def planned(gpus="8xH200", model=K25, sizes=None, **wish):
    return plan(model, parse_gpus(gpus), Wish(sizes=Sizes(**(sizes or {})), **wish))


def test_file_has_its_published_size_to_the_byte_when_computed_from_shapes():
    assert sum(computed_by_part(K25.shape, K25.files["int4"]).values()) == 595_148_192_736
    assert planned().weights_bytes == 595_148_192_736


def test_parts_have_the_numbers_of_config_json_when_counted():
    sizes = {part: size.numbers for part, size in numbers_of(K25.shape).items()}
    assert sizes["experts"] == 60 * 384 * 3 * 7168 * 2048
    assert sizes["embedding"] == 2 * 163840 * 7168
    assert sizes["vision"] == 416_866_032 + 54_277_888
    assert round(sum(sizes.values()) / 1e9, 1) == 1026.9


def test_cache_has_the_tokens_of_the_log_when_planned_as_it_was_served():
    found = planned(utilization=0.9, with_vision=False)
    assert (found.kv_tokens, found.token_bytes) == (715_072, 70_272)
    assert found.per_gpu.cache / GIB == pytest.approx(46.80, abs=0.005)
    assert found.requests_at_once(262_144) == 2
    assert found.requests_at_once(32_768) == 21


@pytest.mark.parametrize(
    ("sizes", "wish", "times"),
    [({"dcp": 8}, {}, 8), ({"dcp": 2}, {}, 2), ({}, {"kv_type": "fp8"}, 2)],
)
def test_cache_grows_by_what_divides_it_when_asked_for(sizes, wish, times):
    plain = planned(with_vision=False).kv_tokens
    assert planned(sizes=sizes, with_vision=False, **wish).kv_tokens == pytest.approx(
        times * plain, rel=0.001
    )


def test_cache_is_not_divided_by_tensor_parallelism_when_attention_is_latent():
    small = load_model("smollm2-135m").shape
    assert bytes_per_token(K25.shape, "bfloat16", tp=8) == 70_272
    assert bytes_per_token(small, "bfloat16", tp=3) == bytes_per_token(small, "bfloat16") // 3


def test_multi_head_attention_takes_what_the_facts_say_when_planned_like_that():
    full = K25.shape.model_copy(
        update={
            "attention": load_model("smollm2-135m").shape.attention.model_copy(
                update={"heads": 64, "kv_heads": 64, "head_dim": 128}
            )
        }
    )
    assert bytes_per_token(full, "bfloat16") == 1_998_848


def test_data_parallel_groups_divide_experts_and_have_caches_of_their_own_when_planned():
    found = planned("16xH200", sizes={"tp": 8, "dp": 2, "ep": True})
    single = planned("8xH200")
    assert found.per_gpu.parts["experts"] * 2 == pytest.approx(single.per_gpu.parts["experts"])
    assert found.per_gpu.parts["attention"] == single.per_gpu.parts["attention"]
    assert found.kv_tokens == 2 * found.engine_tokens


def test_replicas_hold_as_much_each_as_one_alone_when_gpus_are_shared_out():
    found = planned("16xH200", sizes={"replicas": 2})
    assert found.engine_tokens == planned().engine_tokens
    assert found.kv_tokens == 2 * found.engine_tokens


def test_four_h200_do_not_hold_the_weights_when_planned():
    found = planned("4xH200")
    assert (found.fits, found.starts) == (False, False)
    assert found.reasons[0] == (
        "4xH200 do not hold Kimi K2.5 in INT4: its weights take 140.7 GiB a GPU, more than the 129.2 GiB that"
        " vLLM may use of each (0.92 of 140.4)"
    )
    assert [way.option for way in ways_out(found)] == ["--gpus 8xH200"]


@pytest.mark.parametrize("gpus", ["8xH100", "8xA100"])
def test_eight_of_80_gb_hold_weights_and_nothing_else_when_planned(gpus):
    found = planned(gpus)
    assert found.fits is False
    assert "hold the weights of Kimi K2.5 in INT4, 71.8 GiB of the 73." in found.reasons[0]


def test_ways_out_do_what_they_say_when_taken():
    found = planned(concurrency=8)
    assert (found.fits, found.starts) == (False, True)
    assert "not the 8 asked for" in found.reasons[0]
    ways = {way.option: way.requests_at_once for way in ways_out(found)}
    assert ways["--dcp 8"] == planned(sizes={"dcp": 8}, concurrency=8).requests_at_once(262_144)
    assert planned(sizes={"dcp": 8}, concurrency=8).fits


@pytest.mark.parametrize(
    ("sizes", "kept", "without"),
    [
        ({"dcp": 8}, {"dcp": 8}, ""),
        ({"tp": 8}, {}, " without --tp"),
        ({"tp": 8, "dcp": 8}, {"dcp": 8}, " without --tp"),
    ],
)
def test_more_gpus_are_tried_with_the_sizes_given_that_still_divide_them(sizes, kept, without):
    ways = {way.option: way.kv_tokens for way in ways_out(planned(sizes=sizes))}
    assert ways[f"--gpus 16xH200{without}"] == planned("16xH200", sizes=kept).kv_tokens


def test_context_that_would_fit_is_named_when_the_models_own_does_not():
    found = planned("8xH200", utilization=0.65)
    assert (found.fits, found.starts) == (False, False)
    (limit,) = [int(word) for word in found.reasons[0].split() if word.isdigit()]
    assert planned("8xH200", utilization=0.65, context_tokens=limit).starts
    assert planned("8xH200", utilization=0.65, context_tokens=limit + 64).starts is False


@pytest.mark.parametrize(
    ("gpus", "sizes", "wish", "said"),
    [
        ("8xFOO9", {}, {}, "GPU 'FOO9' is not in the catalogue"),
        ("8xFOO9", {}, {}, "--gpus 8x96GiB"),
        ("8xH200+2xA100", {}, {}, "mixes kinds of GPU"),
        ("0xH200", {}, {}, "write count and kind"),
        ("", {}, {}, "names no GPU"),
        ("8xH200", {"tp": 3}, {}, "--tp 3 does not divide the model's 64 attention heads"),
        ("8xH200", {"tp": 4}, {}, "are 4 GPUs, 8xH200 are 8"),
        ("8xH200", {"tp": 4, "dp": 4}, {}, "are 16 GPUs, 8xH200 are 8"),
        ("8xH200", {"dcp": 3}, {}, "--dcp 3 does not divide --tp 8"),
        ("8xH200", {"replicas": 3}, {}, "cannot be shared out to 3 replicas"),
        ("16xH200", {"nodes": 3}, {}, "cannot be shared out to 3 machines"),
        ("8x0GiB", {}, {}, "a GPU has some memory"),
        ("10xH200", {}, {}, "--tp 5 does not divide"),
        ("8xH200", {}, {"context_tokens": 300_000}, "exceeds what Kimi K2.5 takes, 262,144"),
        ("8xH200", {}, {"precision": "int3"}, "no file 'int3'; --precision takes int4, nvfp4"),
    ],
)
def test_one_verdict_names_what_contradicts_what_when_a_set_up_cannot_be(gpus, sizes, wish, said):
    with pytest.raises(SetUpImpossible) as caught:
        planned(gpus, sizes=sizes, **wish)
    assert said in str(caught.value)


def test_experts_are_refused_to_be_divided_when_the_model_has_none():
    with pytest.raises(SetUpImpossible, match="the model has none"):
        planned("1xH100", model=load_model("smollm2-135m"), sizes={"ep": True})
    with pytest.raises(SetUpImpossible, match="heads of keys leave at most 3"):
        planned("9xH100", model=load_model("smollm2-135m"), sizes={"tp": 9, "dcp": 9, "nodes": 1})


@pytest.mark.parametrize(
    ("gpus", "precision", "said"),
    [
        ("8xH200", "mxfp4", "is for AMD GPUs"),
        ("8xH200", "nvfp4", "vLLM serves NVFP4, by NVIDIA from 10.0 on"),
    ],
)
def test_file_is_refused_when_it_is_for_other_gpus(gpus, precision, said):
    found = planned(gpus, precision=precision)
    assert (found.fits, found.starts) == (False, False)
    assert said in found.reasons[0]


def test_main_memory_is_named_when_a_file_for_llama_cpp_exceeds_the_gpus():
    found = planned("1xRTX4090", precision="ud-tq1_0", context_tokens=32_768)
    assert found.fits is False
    assert "llama.cpp can keep that much in main memory" in found.reasons[0]
    assert planned("8xH200", precision="ud-tq1_0").fits


def test_gpu_is_known_by_its_memory_when_its_kind_is_not():
    given = planned("8x140.4GiB")
    assert given.gpus.gpu.capability is None
    assert given.kv_tokens == pytest.approx(planned().kv_tokens, rel=0.001)
    assert parse_gpus("4x96 GB").gpu.memory_bytes == 96 * 10**9


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA L40S", "L40S"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA H2000", None),
    ],
)
def test_kind_is_recognised_when_the_driver_names_it(name, kind):
    found = kind_of(name)
    assert (found.name if found else None) == kind


def test_listing_of_nvidia_smi_is_read_when_gpus_are_alike():
    found = read_listing("NVIDIA H200, 143771, 9.0, 580.95.05\n" * 8)
    assert str(found) == "8xH200"
    assert found.gpu.memory_bytes == CATALOGUE["H200"].memory_bytes
    assert read_listing("No devices were found\n") is None


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        ("NVIDIA H200, 143771, 9.0, 535.104.05\n", "needs driver 580 or later"),
        (
            "NVIDIA H200, 143771, 9.0, 580.95.05\nNVIDIA A100-SXM4-80GB, 81920, 8.0, 580.95.05\n",
            "this machine mixes kinds of GPU",
        ),
    ],
)
def test_machine_is_refused_when_vllm_cannot_use_its_gpus(listing, said):
    with pytest.raises(SetUpImpossible, match=said):
        read_listing(listing)


def test_old_gpu_is_refused_when_vllm_has_no_kernels_for_it():
    old = read_listing("Tesla V100-SXM2-32GB, 32768, 7.0, 580.95.05\n" * 8)
    found = plan(K25, old, Wish())
    assert found.fits is False
    assert "has compute capability 7.0" in found.reasons[0]


def test_siblings_say_what_is_not_known_when_there_are_no_facts():
    k26 = planned(model=load_model("kimi-k2.6"))
    assert (k26.fits, k26.weights_bytes, ways_out(k26)) == (None, None, [])
    assert k26.reasons[0].startswith("not known, no plan: the config.json of")
    assert as_json(k26)["reasons"] == [*k26.reasons]
    k3 = load_model("kimi-k3")
    assert planned("8xH200", model=k3).fits is False
    found = planned("8xGB300", model=k3)
    assert (found.fits, found.kv_tokens) == (None, None)
    assert found.reasons[0].startswith("not known, no plan")


def test_facts_of_the_tiny_model_are_those_of_its_config_when_compared():
    shape, config = load_model("kimi-k2.5-tiny").shape, tiny._config()
    text, seen = config["text_config"], config["vision_config"]
    one = shape.attention
    assert (shape.hidden, shape.layers, shape.vocabulary, shape.dense_size) == (
        text["hidden_size"],
        text["num_hidden_layers"],
        text["vocab_size"],
        text["intermediate_size"],
    )
    assert (one.heads, one.q_lora_rank, one.kv_lora_rank, one.rope_dim) == (
        text["num_attention_heads"],
        text["q_lora_rank"],
        text["kv_lora_rank"],
        text["qk_rope_head_dim"],
    )
    assert (shape.vision.hidden, shape.vision.layers, shape.vision.intermediate) == (
        seen["hidden_size"],
        seen["num_hidden_layers"],
        seen["intermediate_size"],
    )
    assert shape.vision.positions == seen["pos_emb_height"] * seen["pos_emb_width"]
    assert bytes_per_token(shape, "bfloat16") == tiny.KV_BYTES_PER_TOKEN


def test_cpu_cache_holds_whole_blocks_when_its_bytes_are_given():
    small = load_model("kimi-k2.5-tiny")
    found = on_cpu(small, cache_bytes=GIB, kv_type="bfloat16", context_tokens=16_384)
    assert (found.kv_tokens, found.fits) == (233_008, True)
    assert on_cpu(small, cache_bytes=2**20, kv_type="bfloat16", context_tokens=16_384).fits is False


@pytest.mark.parametrize(("kv_type", "num_bytes"), [("bfloat16", 2), ("float32", 4)])
def test_weights_are_of_the_type_that_the_cpu_computes_with(kv_type, num_bytes):
    found = on_cpu(
        load_model("smollm2-135m"), cache_bytes=GIB, kv_type=kv_type, context_tokens=8192
    )
    assert found.weights_bytes == 134_515_008 * num_bytes
    assert found.kv_tokens == GIB // (30 * 2 * 3 * 64 * num_bytes) // 16 * 16


def test_json_names_what_the_planner_promises_when_it_is_shown():
    shown = as_json(planned())
    assert {"weights_bytes", "kv_tokens", "fits", "reasons", "per_gpu", "table", "parallel"} <= set(
        shown
    )
    each = shown["per_gpu"]
    assert each["weights_bytes"] + each["overhead_bytes"] + each["kv_bytes"] == each["usable_bytes"]
    assert [row["context_tokens"] for row in shown["table"]] == [8_192, 32_768, 131_072, 262_144]


def test_every_profile_names_known_facts_when_it_names_any():
    named = {profile.facts for name in known_profiles() if (profile := load_profile(name)).facts}
    assert named == set(known_models())
