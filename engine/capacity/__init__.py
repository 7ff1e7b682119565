"""The capacity planner: does a model fit on these GPUs, with what context, for how many at once.

`plan(model, gpus, wish)` judges a set-up; `on_cpu` one whose cache has a given size. Facts of models come
from config/models/*.yaml (`config.models.load_model`), GPUs from `parse_gpus` or `find_gpus`.
"""

from engine.capacity.cache import kv_type_of
from engine.capacity.facts import ModelFacts, WeightFile
from engine.capacity.gpus import Gpu, Gpus, find_gpus, parse_gpus
from engine.capacity.layout import Layout, Sizes
from engine.capacity.plan import OVERHEAD_BYTES, UTILIZATION, Plan, Wish, on_cpu
from engine.capacity.verdict import WayOut, as_json, plan, ways_out

__all__ = [
    "OVERHEAD_BYTES",
    "UTILIZATION",
    "Gpu",
    "Gpus",
    "Layout",
    "ModelFacts",
    "Plan",
    "Sizes",
    "WayOut",
    "WeightFile",
    "Wish",
    "as_json",
    "find_gpus",
    "kv_type_of",
    "on_cpu",
    "parse_gpus",
    "plan",
    "ways_out",
]
