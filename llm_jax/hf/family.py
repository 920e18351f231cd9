"""One table of weight names per family, used in both directions.

A row is: our parameter path, the name of their tensor, and the layout (see `layouts.py`). In their names {N} is the
number of the layer and {E} that of the expert. A table has a row for everything that its family may have; rows of
parameters that a model lacks (biases, an untied head) are skipped.
"""
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from llm_jax.config.model.architecture import AnyBlock, Architecture
from llm_jax.hf.fields import Fields
from llm_jax.hf.layouts import Shape, parse

Row = tuple[str | tuple[str, ...], str, str]
NOTHING = re.compile(r'(?!)')


class Family(NamedTuple):
  """A model type of `transformers`.

  architecture: its class for causal language models.
  read, write: from the entries of its `config.json` to an architecture, and back.
  model, layer: rows of the whole model, and of one layer (with paths inside of a block).
  resembles: whether an architecture looks like one of this family, so that `write` should be tried.
  multi_token: rows of what a multi-token block has beside the block itself.
  copies: rows of what the file of such a block repeats from the model. They may be absent.
  base_model_prefix: starts the names of tensors in a file of the whole model; a file of the decoder alone lacks it.
  ignored: names of buffers that some files have.   float32: names of tensors that are never rounded.
  """
  model_type: str
  architecture: str
  read: Callable[[Fields], Architecture]
  write: Callable[[Architecture], dict[str, Any]]
  model: tuple[Row, ...]
  layer: tuple[Row, ...]
  resembles: Callable[[Architecture], bool]
  multi_token: tuple[Row, ...] = ()
  copies: tuple[Row, ...] = ()
  base_model_prefix: str = ''
  ignored: re.Pattern[str] = NOTHING
  float32: re.Pattern[str] = NOTHING


class Entry(NamedTuple):
  """One tensor of theirs (or one per expert), and our parameters in it.

  layer: the index into the leading axis of the stacked parameters, or None.
  rotary: how many numbers at the end of a head are turned by rotary positions.
  copy: whether it repeats another tensor, and may be absent.   written: whether we write it.
  """
  names: tuple[str, ...]
  layout: str
  paths: tuple[str, ...]
  layer: int | None
  rotary: int = 0
  copy: bool = False
  written: bool = True

  def shapes(self, shapes: Mapping[str, Shape]) -> list[Shape]:
    """The shapes of our parameters in one tensor, given the shapes of all parameters by path."""
    own = [shapes[path] if self.layer is None else shapes[path][1:] for path in self.paths]
    numbered = parse(self.layout).numbered
    return own if numbered is None else [shape[:numbered] + shape[numbered + 1:] for shape in own]


def entries(config: Architecture, family: Family, shapes: Mapping[str, Shape]) -> Iterator[Entry]:
  """The tensors of the model whose parameters have `shapes` (by path), in the family's order."""
  def make(row: Row, place: str, layer: int | None, number: int, block: AnyBlock | None, **rest: Any
           ) -> Iterator[Entry]:
    ours, theirs, layout = row
    paths = tuple(place + path for path in ([ours] if isinstance(ours, str) else ours))
    if paths[0] not in shapes:
      return
    names, numbered = (theirs.replace('{N}', str(number)),), parse(layout).numbered
    if numbered is not None:
      size = Entry((), '', paths, layer).shapes(shapes)[0][numbered]
      names = tuple(names[0].replace('{E}', str(expert)) for expert in range(size))
    yield Entry(names, layout, paths, layer, block.attention.rotary_size(config.d_model) if block else 0, **rest)

  for row in family.model:
    yield from make(row, '', None, 0, None)
    if row[0] == 'head/w' and config.tied_head:  # some files repeat the embedding under the head's name
      yield from make(('embedding/w', *row[1:]), '', None, 0, None, copy=True, written=False)
  places = [(f'prefix_{i}/', None, block) for i, block in enumerate(config.prefix)]
  places += [(f'blocks/block_{i}/', n, block) for n in range(config.repeats) for i, block in enumerate(config.pattern)]
  places += [(f'multi_token_{i}/block/', None, block) for i, block in enumerate(config.multi_token)]
  for number, (place, layer, block) in enumerate(places):
    for row in family.layer:
      yield from make(row, place, layer, number, block)
    if number >= config.num_layers:
      for row in family.multi_token:
        yield from make(row, place.removesuffix('block/'), None, number, None)
      for row in family.copies:
        yield from make(row, '', None, number, None, copy=True)
