"""Keeps a document's text from being read as the marks that steer a model.

Chat templates put special tokens such as `<|im_end|>` around messages, and servers find them in any text
of a prompt. A document that holds one could end its own message and speak as someone else.
"""

from __future__ import annotations

import re

_MARK = re.compile(
    r"(?P<open><)(?=\|[^|<>\n]{1,60}\|>)"  # Kimi, SmolLM2, Qwen, Llama 3: <|im_end|>
    r"|(?P<tag><)(?=/?(?:think|s|bos|eos|pad|unk|start_of_turn|end_of_turn|tool_call|tool_response)>)"
    r"|(?P<bracket>\[)(?=/?(?:BOS|EOS|EOT|UNK|PAD|INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS)\])"
)


def disarm(text: str) -> str:
    """Return the text with a blank inside each such mark: it reads the same and steers nothing."""
    if "<" not in text and "[" not in text:
        return text
    return _MARK.sub(lambda found: f"{found.group()} ", text)
