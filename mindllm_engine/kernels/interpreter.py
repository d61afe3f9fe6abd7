"""Mends Triton's interpreter, which runs kernels in Python where there is no GPU: its casts to bf16 truncate, and its
fused multiply-add rounds the product.

A GPU rounds to nearest, ties to even, and rounds `x * y + z` once. Imported by `launch` when TRITON_INTERPRET=1; seen
on triton 3.6 to 3.9. On triton 3.6 with NumPy from 2.4 on, a scalar that a kernel has computed is no bound of `range`.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_convert_other = interpreter._convert_float
_patch_tensor = interpreter._patch_lang_tensor


def mend_interpreter() -> None:
    """Round to nearest even in every conversion to bf16; widen bf16 by a shift; round a multiply-add once; take scalars
    as integers."""
    interpreter._convert_float = _convert_float
    interpreter.InterpreterBuilder.create_fma = _multiply_add
    interpreter._patch_lang_tensor = _patch_lang_tensor


def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
    """`range` takes a scalar, which is held as an array of one element."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """`x * y + z`, in fp64 for fp32, whose products are exact there."""
    total = x.data.astype(np.float64) * y.data + z.data
    return interpreter.TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)


def _convert_float(values: np.ndarray, source: Any, target: Any, rounding_mode: Any) -> np.ndarray:
    """`values` hold the bits or numbers of `source`; returns the bits of `target` as unsigned integers."""
    if source == tl.float32 and target == tl.bfloat16:
        return _round_to_bf16(np.ascontiguousarray(values).view(np.uint32))
    if source == tl.bfloat16 and target == tl.float32:
        return np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << 16
    return _convert_other(values, source, target, rounding_mode)


def _round_to_bf16(bits: np.ndarray) -> np.ndarray:
    """fp32 bits to bf16 bits: half of the last kept bit is added, less one where the number kept is even."""
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, np.uint16(0x7FC0), rounded)
