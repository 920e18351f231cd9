"""The weights that are matrices, and which of their axes are inputs and outputs.

Muon orthogonalises these matrices, adapters add a product of low rank to them, and quantisation stores them in fewer
bits. The other weights are embeddings, positions, heads and routers, which classify as heads do.
"""
from typing import NamedTuple

from llm_jax import paths


class Matrix(NamedTuple):
  """The axes of a matrix, counted from the end: the axes of scanned layers and of experts come before them, since every
  layer and every expert has a matrix of its own."""
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


MATRICES = (
  (r'/attention/(query|key|value)/w$',     Matrix((-3,), (-2, -1))),  # D -> H K
  (r'/attention/out/w$',                   Matrix((-3, -2), (-1,))),  # H K -> D
  (r'/attention/(query|key|value)_up/w$',  Matrix((-3,), (-2, -1))),  # rank -> H K
  (r'/attention/(query_down|kv_down|key_rotary)/w$', Matrix((-2,), (-1,))),  # D -> rank
  (r'/feed_forward/((experts|shared)/)?(gate|up|down)/w$', Matrix((-2,), (-1,))),  # D -> F, F -> D
  (r'^multi_token_\d+/project/w$',         Matrix((-2,), (-1,))),     # 2 D -> D
)


def matrix_of(path: str) -> Matrix | None:
  """The axes of the weight at `path`; None where it is no matrix."""
  return paths.first_match(MATRICES, path)


def split_shape(shape: tuple[int, ...], matrix: Matrix) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
  """The sizes of a matrix's axes: of layers and experts, of inputs, of outputs."""
  num_outputs, num_inputs = len(matrix.outputs), len(matrix.inputs)
  return shape[:-num_inputs - num_outputs], shape[-num_inputs - num_outputs:-num_outputs], shape[-num_outputs:]
