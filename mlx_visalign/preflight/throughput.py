"""Run time estimate: operations divided by measured speed.

Only matrix products are counted and timed. Scoring processes many tokens at once; sampling processes one token per answer
and has to read every weight for it, so it is timed separately.
"""

import time
from collections.abc import Mapping

import mlx.core as mx

from mlx_visalign.preflight.memory import FLOAT32, QUANTISED_GROUP, Setting, Shape
from mlx_visalign.preflight.workload import Workload, reading_flops, sampling_flops, training_flops

LONG_ENOUGH = 0.1  # seconds a product must take for a reliable time
ROWS, COLUMNS = 8, 64  # the smallest product


def rates_for(shape: Shape, setting: Setting, workload: Workload) -> dict[int, float]:
    """Operations per second, by the number of tokens processed together.

    Measured for a prompt's tokens, and for the answers sampled together in each stage.
    """
    rows = {setting.prompt, *(stage.together * stage.streams for stage in workload.stages if stage.sampled)}
    return {count: measured_rate(shape, setting, count) for count in sorted(rows)}


def seconds_of(shape: Shape, setting: Setting, workload: Workload, rates: Mapping[int, float]) -> dict[str, float]:
    """Seconds of each stage and of the training."""
    seconds = {}
    for stage in workload.stages:
        seconds[stage.title] = reading_flops(shape, setting, stage) / rates[setting.prompt]
        if stage.sampled:
            seconds[stage.title] += sampling_flops(shape, setting, stage) / rates[stage.together * stage.streams]
    return seconds | {"training": workload.trained * training_flops(shape, setting) / rates[setting.prompt]}


def measured_rate(shape: Shape, setting: Setting, rows: int) -> float:
    """Operations per second on this machine.

    Times the product of `rows` tokens with weights like those of the model's MLP. The product grows until it takes long
    enough or has the model's size: what a GPU does at once may take a CPU minutes.
    """
    n, outputs = min(rows, ROWS), min(shape.inner, COLUMNS)
    while True:
        seconds = _seconds(shape, setting, n, outputs)
        if seconds >= LONG_ENOUGH or (n, outputs) == (rows, shape.inner):
            return 2 * n * shape.width * outputs / seconds
        n, outputs = (min(rows, 4 * n), outputs) if n < rows else (n, min(shape.inner, 4 * outputs))


def _seconds(shape: Shape, setting: Setting, rows: int, outputs: int) -> float:
    """Seconds of one product, run twice because the first run is slower."""
    dtype = mx.float32 if setting.number == FLOAT32 else mx.bfloat16
    tokens = mx.random.normal((rows, shape.width)).astype(dtype)
    weights = mx.random.normal((outputs, shape.width)).astype(dtype)
    quantised = mx.quantize(weights, QUANTISED_GROUP, setting.bits) if setting.bits < 16 else None
    seconds = 0.0
    for _ in range(2):
        mx.eval(tokens, weights, quantised)
        started = time.perf_counter()
        if quantised is None:
            mx.eval(tokens @ weights.T)
        else:
            mx.eval(mx.quantized_matmul(tokens, *quantised, group_size=QUANTISED_GROUP, bits=setting.bits))
        seconds = time.perf_counter() - started
    return seconds
