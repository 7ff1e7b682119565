"""Tokens of an image, by Kimi K2.5's published rule."""

from __future__ import annotations

import math

PATCHES_PER_SIDE = 512
"""Most patches along one side of an image: `patch_limit_on_one_side` of Kimi K2.5's media_proc_cfg."""

MOST_IMAGE_TOKENS = 4464
"""Most tokens of one image, such as one of 503 x 7,292 px; found by trying sizes up to 16,000 px."""


def image_tokens(
    width_px: int, height_px: int, *, cell_px: int = 28, max_tokens: int = 4096
) -> int:
    """Return the tokens of one image.

    The model sees cells of `cell_px`, two patches wide and high, one token each; the image is padded
    to whole cells. An image beyond `max_tokens` is first scaled down, and padded after that: so the
    result may exceed `max_tokens`: 4,158 for an A4 page at 300 dpi, `MOST_IMAGE_TOKENS` at worst.

    Source: `navit_resize_image` of moonshotai/Kimi-K2.5, as in vLLM's kimi_k25_vision_fused.py.

    Raises:
        ValueError: A side is not positive.
    """
    if width_px < 1 or height_px < 1:
        raise ValueError(f"an image of {width_px} x {height_px} px has no tokens")
    patch_px = cell_px // 2
    patches = max(1, width_px // patch_px) * max(1, height_px // patch_px)
    longest_px = PATCHES_PER_SIDE * patch_px
    scale = min(
        1.0, math.sqrt(4 * max_tokens / patches), longest_px / width_px, longest_px / height_px
    )
    columns, rows = (
        math.ceil(min(max(1, int(side_px * scale)), longest_px) / cell_px)
        for side_px in (width_px, height_px)
    )
    return columns * rows
