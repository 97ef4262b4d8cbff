"""Casting between float types, against MLX's and NumPy's own for every 16-bit number there is, and what it counts as lost."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_visalign.convert.io import tensors
from mlx_visalign.convert.io.tensors import Loss, Tensor, cast, contiguous_strides, extent

ALL_BITS = np.arange(1 << 16, dtype=np.uint16)
RNG = np.random.default_rng(0)
# Every exponent, and halves between neighbours, where ties are rounded to even.
SINGLES = np.concatenate([RNG.integers(0, 1 << 32, 20_000, np.uint32), np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000])


def mlx_of(bits: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(bits).view(dtype)


def same(ours: np.ndarray, theirs: mx.array) -> bool:
    """Equal bit for bit, but that a NaN may be any NaN."""
    theirs_single = np.array(theirs.astype(mx.float32))
    bits = np.array(theirs.view(mx.uint16))
    return bool(np.all((ours.view(np.uint16) == bits) | np.isnan(theirs_single))) and np.array_equal(
        np.isnan(theirs_single), np.isnan(np.array(mlx_of(ours.view(np.uint16), theirs.dtype).astype(mx.float32)))
    )


def test_every_bfloat16_becomes_the_float32_and_float16_that_mlx_makes_of_it():
    brain = mlx_of(ALL_BITS, mx.bfloat16)
    single, loss = cast(ALL_BITS, "BF16", "F32")
    np.testing.assert_array_equal(single, np.array(brain.astype(mx.float32)))
    assert loss == Loss()
    assert same(cast(ALL_BITS, "BF16", "F16")[0], brain.astype(mx.float16))


def test_every_float16_becomes_the_bfloat16_that_mlx_makes_of_it():
    half, loss = cast(ALL_BITS.view(np.float16), "F16", "BF16")
    assert same(half, mlx_of(ALL_BITS, mx.float16).astype(mx.bfloat16))
    assert loss == Loss()  # its exponents reach further


def test_float32_is_rounded_as_mlx_rounds_it():
    single = SINGLES.view(np.float32)
    assert same(cast(single, "F32", "BF16")[0], mx.array(single).astype(mx.bfloat16))
    assert same(cast(single, "F32", "F16")[0], mx.array(single).astype(mx.float16))


def test_bfloat16_through_a_wider_type_and_back_is_the_same():
    for wider in ("F32", "F64"):
        back, loss = cast(cast(ALL_BITS, "BF16", wider)[0], wider, "BF16")
        numbers = ~np.isnan(cast(ALL_BITS, "BF16", "F32")[0])
        np.testing.assert_array_equal(back[numbers], ALL_BITS[numbers])
        assert loss == Loss()


def test_what_overflows_and_what_is_flushed_is_counted():
    values = np.array([65504, 65520, -1e30, np.inf, np.nan, 1e-8, -1e-9, 0, 1e-7], np.float32)
    result, loss = cast(values, "F32", "F16")
    assert loss == Loss(overflowed=2, flushed=2)
    assert np.isinf(result[1:4]).all() and (result[5:8] == 0).all() and result[8] != 0
    assert cast(np.array([1e300, 1e-300]), "F64", "F32")[1] == Loss(1, 1)


def test_pieces_of_a_strided_array_are_put_together(monkeypatch):
    monkeypatch.setattr(tensors, "CAST_AT_ONCE", 5)
    values = RNG.normal(size=(6, 7)).astype(np.float32).T
    values[0, 0] = 1e9
    result, loss = cast(values, "F32", "F16")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(result, values.astype(np.float16))
    assert loss == Loss(overflowed=1)


def test_the_same_type_is_handed_through_and_whole_numbers_are_refused():
    assert cast(ALL_BITS, "BF16", "BF16")[0] is ALL_BITS
    with pytest.raises(ValueError, match="floats"):
        cast(np.arange(3), "I64", "F32")


def test_sizes_strides_and_extents():
    assert Tensor("a", "BF16", (2, 3)).nbytes == 12
    assert Tensor("scalar", "F64", ()).nbytes == 8
    assert contiguous_strides((2, 3, 4)) == (12, 4, 1)
    assert extent((2, 3), (4, 1)) == 7
    assert extent((), ()) == 1
    assert extent((0, 9), (9, 1)) == 0
