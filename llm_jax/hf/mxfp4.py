"""Weights in MXFP4 (OCP Microscaling Formats 1.0, 2023, section 5), as the files of gpt-oss hold their experts.

A tensor X is stored as two: `X_blocks`, uint8 [experts, rows, blocks, 16], two numbers of four bits in each byte, the
lower half first; and `X_scales`, uint8 [experts, rows, blocks], each of which scales the 32 numbers of a block by
2^(scale - 127). X itself is [experts, 32 x blocks, rows]: its input axis is the last one where it is stored.
"""
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llm_jax.config.errors import require
from llm_jax.hf.tensor_file import FileTensor, TensorFiles

BLOCKS, SCALES = '_blocks', '_scales'
SCALE_BIAS, NAN_SCALE = 127, 255
# The numbers of four bits: a sign, two bits of exponent, one of fraction (E2M1).
NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# Both numbers of each byte, [256, 2].
PAIRS = np.stack([NUMBERS[np.arange(256) & 15], NUMBERS[np.arange(256) >> 4]], axis=-1)


def unpack(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """float32 [..., 32 x blocks] of uint8 [..., blocks, 16] and [..., blocks]. Exact, but for products beyond float32,
  which become infinite; the scale 255 is NaN."""
  numbers = PAIRS[blocks].reshape(*scales.shape, -1)
  with np.errstate(over='ignore'):
    factors = np.ldexp(np.float32(1), scales.astype(np.int32) - SCALE_BIAS)
    factors = np.where(scales == NAN_SCALE, np.float32(np.nan), factors)
    numbers *= factors[..., None]
  return numbers.reshape(*scales.shape[:-1], -1)


class PackedTensor:
  """A tensor in MXFP4, with the shape and dtype of the floats in it. They are made when they are asked for, some of its
  first axis at a time."""

  def __init__(self, name: str, blocks: FileTensor, scales: FileTensor):
    is_known = blocks.dtype == scales.dtype == np.uint8 and len(blocks.shape) == 4 and blocks.shape[-1] == 16
    require(is_known and blocks.shape[:-1] == scales.shape, f'tensors: {name}',
            f'{blocks.dtype} {list(blocks.shape)}, scales {scales.dtype} {list(scales.shape)}',
            'MXFP4 is read as uint8 [experts, rows, blocks, 16] with scales [experts, rows, blocks]')
    self._blocks, self._scales = blocks, scales
    experts, rows, count, _ = blocks.shape
    self.shape = experts, 32 * count, rows
    self.dtype = np.dtype(np.float32)
    self.nbytes = blocks.nbytes + scales.nbytes  # in the file

  def part(self, start: int, stop: int) -> np.ndarray:
    """float32, that part of the first axis."""
    blocks, scales = (np.asarray(tensor)[start:stop] for tensor in (self._blocks, self._scales))
    return unpack(blocks, scales).swapaxes(1, 2)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.array(self.part(0, self.shape[0]), dtype, copy=copy)

  def forget(self) -> None:
    """Releases the memory that reading took."""
    self._blocks.forget()
    self._scales.forget()


Tensor = np.ndarray | FileTensor | PackedTensor


class UnpackedTensors(Mapping[str, FileTensor | PackedTensor]):
  """The tensors of files by name, each pair of blocks and scales as one `PackedTensor`."""

  def __init__(self, tensors: TensorFiles):
    stems = [name.removesuffix(BLOCKS) for name in tensors if name.endswith(BLOCKS)]
    packed = [stem for stem in stems if stem + SCALES in tensors]
    parts = {stem + end for stem in packed for end in (BLOCKS, SCALES)}
    self._tensors: dict[str, FileTensor | PackedTensor] = {
      name: tensor for name, tensor in tensors.items() if name not in parts}
    for stem in packed:
      self._tensors[stem] = PackedTensor(stem, tensors[stem + BLOCKS], tensors[stem + SCALES])

  def __getitem__(self, name: str) -> FileTensor | PackedTensor:
    return self._tensors[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)

  def forget(self, name: str) -> None:
    """Releases the memory that reading a tensor took. The tensor can be read again."""
    self._tensors[name].forget()


def is_mxfp4(values: Mapping[str, Any]) -> bool:
  """Whether a `config.json` says that weights are in MXFP4."""
  quantisation = values.get('quantization_config')
  return isinstance(quantisation, Mapping) and quantisation.get('quant_method') == 'mxfp4'
