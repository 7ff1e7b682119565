"""A checkpoint of Kimi K2.5's architecture, small enough for two cores: layout, not knowledge.

The real parts in the real order (MLA with its 512 + 64 latent, one dense layer, then 384 experts of
which 8 answer beside a shared one, MoonViT, YaRN to 262,144 positions), made narrow and few. vLLM
serves it with the code, parsers and flags that the full model takes, and makes up the weights itself
(`--load-format dummy`), so what it says is noise: it is for tests of everything around the words.

The shape follows config.json of moonshotai/Kimi-K2.5; vision keys are those of transformers' own
class, which ignores the older `vt_*` names.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import PrerequisiteError

VERSION = "1"
"""Counts up where the files made here change, so that an older folder is not taken for this one."""

FILES: tuple[str, ...] = (
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "preprocessor_config.json",
)
"""What the model's folder must hold."""

NUM_LAYERS = 4
LATENT_SIZE = 512 + 64
"""Numbers that MLA keeps of a token in each layer: compressed keys and values, and rotated keys."""

KV_BYTES_PER_TOKEN = NUM_LAYERS * LATENT_SIZE * 2
"""Bytes of the KV cache a token takes, in bfloat16."""

VOCABULARY_SIZE = 163_840

SPECIAL_TOKENS: Mapping[str, int] = {
    "[BOS]": 163584,
    "[EOS]": 163585,
    "<|im_end|>": 163586,
    "<|im_user|>": 163587,
    "<|im_assistant|>": 163588,
    "<|start_header_id|>": 163590,
    "<|end_header_id|>": 163591,
    "[EOT]": 163593,
    "<|im_system|>": 163594,
    "<|tool_calls_section_begin|>": 163595,
    "<|tool_calls_section_end|>": 163596,
    "<|tool_call_begin|>": 163597,
    "<|tool_call_argument_begin|>": 163598,
    "<|tool_call_end|>": 163599,
    "<|im_middle|>": 163601,
    "<|media_begin|>": 163602,
    "<|media_content|>": 163603,
    "<|media_end|>": 163604,
    "<|media_pad|>": 163605,
    "<think>": 163606,
    "</think>": 163607,
    "[UNK]": 163838,
    "[PAD]": 163839,
}
"""Kimi's own, with their ids (tokenizer_config.json of the model)."""

_SEEN = frozenset(
    {
        "<think>", "</think>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
        "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    }
)  # fmt: skip
"""Tokens that the parsers look for, so decoding leaves them in the text."""

TEMPLATE = """\
{%- macro show(content) -%}
  {%- if content is string -%}{{ content }}
  {%- elif content -%}
    {%- for part in content -%}
      {%- if part.type == 'text' -%}{{ part.text }}
      {%- else -%}<|media_begin|>image<|media_content|><|media_pad|><|media_end|>
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_answer=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'assistant' and not message.tool_calls -%}
    {%- set ns.last_answer = loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- if tools -%}
<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
<|im_assistant|>assistant<|im_middle|>
    {%- if loop.index0 > ns.last_answer -%}
<think>{{ message.reasoning or message.reasoning_content or '' }}</think>
    {%- else -%}
<think></think>
    {%- endif -%}
{{ show(message.content) }}
    {%- if message.tool_calls -%}
<|tool_calls_section_begin|>
      {%- for call in message.tool_calls -%}
<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>
        {%- if call.function.arguments is string -%}{{ call.function.arguments }}
        {%- else -%}{{ call.function.arguments | tojson }}
        {%- endif -%}
<|tool_call_end|>
      {%- endfor -%}
<|tool_calls_section_end|>
    {%- endif -%}
<|im_end|>
  {%- elif message.role == 'system' -%}
<|im_system|>system<|im_middle|>{{ show(message.content) }}<|im_end|>
  {%- elif message.role == 'tool' -%}
<|im_system|>tool<|im_middle|>## Return of {{ message.tool_call_id }}
{{ show(message.content) }}<|im_end|>
  {%- else -%}
<|im_user|>user<|im_middle|>{{ show(message.content) }}<|im_end|>
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_assistant|>assistant<|im_middle|><think>
  {%- if thinking is defined and not thinking -%}</think>{%- endif -%}
{%- endif -%}
"""
"""Renders messages in the order and with the marks that Kimi K2.5 expects: tools first; of earlier
answers only the thinking since the last one without a tool call; `thinking: false` closes the
thinking before it begins."""


def dtype() -> str:
    """Return the weights' type: MLA has no other on a CPU."""
    return "bfloat16"


def model_folder(cache: Path) -> Path:
    """Return where the checkpoint lies, or will lie, in the cache."""
    return cache / "models" / f"kimi-k2.5-tiny-{VERSION}"


def prepare(
    python: Path,  # noqa: ARG001 - the other model's writer runs in it
    cache: Path,
    environment: Mapping[str, str],  # noqa: ARG001 - as above
    notify: Callable[[str], None],
) -> Path:
    """Return the checkpoint's folder, after writing it where it is missing.

    Raises:
        PrerequisiteError: It cannot be written.
    """
    folder = model_folder(cache)
    if folder.is_dir():
        return folder
    notify("engine: writing the tiny K2.5 checkpoint (once, about 1 s)")
    try:
        write(folder)
    except OSError as exc:
        # Another process may have written it in the meantime.
        if not folder.is_dir():
            raise PrerequisiteError(
                f"the tiny K2.5 checkpoint cannot be written to {str(folder)!r} ({exc.strerror});"
                " free space or set HEADRACE_CACHE to another folder"
            ) from exc
    return folder


def write(folder: Path) -> None:
    """Write the checkpoint; the folder appears whole or not at all.

    Raises:
        OSError: It cannot be written, or there is a folder with files in it.
    """
    files = {
        "config.json": _config(),
        "generation_config.json": {"eos_token_id": SPECIAL_TOKENS["<|im_end|>"]},
        "preprocessor_config.json": _images(),
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "[BOS]",
            "eos_token": "[EOS]",
            "unk_token": "[UNK]",
            "pad_token": "[PAD]",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 262_144,
        },
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for name, content in files.items():
            (staged / name).write_text(json.dumps(content), encoding="utf-8")
        (staged / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        staged.chmod(0o755)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _config() -> Mapping[str, Any]:
    text = {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 256,
        "intermediate_size": 512,
        "moe_intermediate_size": 64,
        "num_hidden_layers": NUM_LAYERS,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 128,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 384,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.827,
        "num_nextn_predict_layers": 0,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "max_position_embeddings": 262_144,
        "rope_theta": 50_000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 64.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": SPECIAL_TOKENS["[BOS]"],
        "eos_token_id": SPECIAL_TOKENS["<|im_end|>"],
        "pad_token_id": SPECIAL_TOKENS["[PAD]"],
        "dtype": "bfloat16",
    }
    return {
        "model_type": "kimi_k25",
        "architectures": ["KimiK25ForConditionalGeneration"],
        "dtype": "bfloat16",
        "text_config": text,
        "vision_config": {
            "model_type": "kimi_k25_vision",
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "patch_size": 14,
            "merge_kernel_size": [2, 2],
            "pos_emb_height": 64,
            "pos_emb_width": 64,
            "pos_emb_time": 4,
        },
        "projection_hidden_size": 128,
        "image_token_id": SPECIAL_TOKENS["<|media_pad|>"],
        "media_placeholder_token_id": SPECIAL_TOKENS["<|media_pad|>"],
        "use_unified_vision_chunk": True,
        "video_placeholder": "<|kimi_k25_video_placeholder|>",
        "tie_word_embeddings": False,
        "bos_token_id": SPECIAL_TOKENS["[BOS]"],
        "eos_token_id": SPECIAL_TOKENS["<|im_end|>"],
        "pad_token_id": SPECIAL_TOKENS["[PAD]"],
    }


def _images() -> Mapping[str, Any]:
    """Return MoonViT's rule, as the model's preprocessor_config.json has it, for smaller images."""
    return {
        "media_proc_cfg": {
            "patch_size": 14,
            "merge_kernel_size": 2,
            # The real model allows 16,384; vLLM measures its memory with an image of that size.
            "in_patch_limit": 4096,
            "patch_limit_on_one_side": 512,
            "fixed_output_tokens": None,
            "in_patch_limit_each_frame": 1024,
            "in_patch_limit_video": 4096,
            "temporal_merge_kernel_size": 4,
            "sample_fps": 2.0,
            "max_num_frames_each_video": None,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    }


def _tokenizer() -> Mapping[str, Any]:
    """Return a tokenizer of bytes: every byte of a text is one token, every other id a made-up word.

    The words are never read, only written: without them most of what random weights say would decode
    to nothing.
    """
    vocabulary = {name: number for number, name in enumerate(byte_letters())}
    words = ("".join(syllables) for syllables in itertools.product(_SYLLABLES, repeat=3))
    for number in range(len(vocabulary), SPECIAL_TOKENS["[BOS]"]):
        vocabulary["\u0120" + next(words)] = number
    taken = {number: name for name, number in SPECIAL_TOKENS.items()}
    specials = {
        taken.get(number, f"<|reserved_{number}|>"): number
        for number in range(SPECIAL_TOKENS["[BOS]"], VOCABULARY_SIZE)
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": name not in _SEEN,
            }
            for name, number in specials.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary | specials,
            "merges": [],
        },
    }


_SYLLABLES = tuple(
    first + vowel + last
    for first in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t")
    for vowel in "aeiou"
    for last in ("", "n")
)


def byte_letters() -> list[str]:
    """Return the letter that stands for each byte in a byte-level vocabulary.

    Printable bytes stand for themselves; the others get the characters from U+0100 on, in order, so
    that no entry holds a blank or a control character. This is the table that GPT-2 introduced.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
