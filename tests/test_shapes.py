"""What is refused, and whether the message helps."""

import pytest
import torch

from rankedit import shapes
from rankedit.errors import RankeditError, ShapeError


class TestCheckRows:
    def test_gives_back_what_fits(self):
        rows = torch.ones(2, 3)
        assert shapes.check_rows("call", "rows", rows, 3, 2) is rows

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    def test_finite_numbers_whose_sum_overflows(self, dtype):
        rows = torch.full((2, 3), torch.finfo(dtype).max, dtype=dtype)
        shapes.check_finite("call", "rows", rows)
        if dtype == torch.float64:  # their squares are what everything is solved with
            with pytest.raises(ShapeError, match="call: rows must not be so large that sums of"):
                shapes.check_rows("call", "rows", rows)
        else:
            assert shapes.check_rows("call", "rows", rows) is rows

    def test_sparse_rows_are_refused(self):
        with pytest.raises(ShapeError, match="call: rows must be dense, got a sparse one; use"):
            shapes.check_rows("call", "rows", torch.ones(2, 3).to_sparse())

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([1.0], r"call: rows must be a floating-point tensor \[2, 3\], got list \[1.0\]"),
            (torch.ones(2, 3, dtype=torch.int32), r"got a int32 tensor of shape \[2, 3\]; convert"),
            (torch.ones(3), r"must have shape \[2, 3\], .* add the row axis with vector\[None\]"),
            (torch.ones(2, 4), r"got a float32 tensor of shape \[2, 4\]; one row is one vector"),
            (torch.ones(1, 3), r"must have shape \[2, 3\], got a float32 tensor of shape \[1, 3\]"),
            (torch.ones(0, 3), r"must have shape \[2, 3\]"),
            (torch.ones(1, 2, 3), r"must have shape \[2, 3\]"),
            (torch.tensor([[0, torch.inf, 0], [torch.nan, 0, 0]]), "must be finite, got 2 NaN or"),
            (torch.tensor([[0, torch.inf, 0], [-torch.inf, 0, 0]]), "must be finite, got 2 NaN or"),
            (torch.ones(2, 3, device="meta"), r"rows must have data, got .* make it on another"),
        ],
    )
    def test_refusals(self, value, message):
        with pytest.raises(ShapeError, match=message):
            shapes.check_rows("call", "rows", value, 3, 2)

    def test_any_size_where_none_is_asked_for(self):
        with pytest.raises(ShapeError, match=r"must have shape \[n, dim\]"):
            shapes.check_rows("call", "rows", torch.ones(2))
        assert shapes.check_rows("call", "rows", torch.ones(5, 1)).shape == (5, 1)

    @pytest.mark.parametrize(
        "dtype",
        [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
    )
    def test_any_float_dtype(self, dtype):
        assert shapes.check_rows("call", "rows", torch.ones(2, 3).to(dtype)).dtype == dtype


def test_errors_are_the_library_s_and_python_s():
    with pytest.raises(RankeditError):
        shapes.check_finite("call", "x", torch.tensor([torch.inf]))
    with pytest.raises(ValueError, match="overflow in half precision"):
        shapes.check_finite("call", "x", torch.tensor([torch.inf]))


def test_long_values_are_cut_in_messages():
    assert len(shapes.describe("x" * 1000)) == 120
