"""Tables of some pages, made from the code.

python -m docs.tables        writes them between their markers; a test compares them with the code
"""
import math
import pathlib
import re

from llm_jax.config import presets
from llm_jax.config.fields import fields_of
from llm_jax.config.run import Run
from llm_jax.config.type_hints import dataclasses_of
from llm_jax.hf.weights import parameter_shapes
from llm_jax.sharding.rules import PARAMETER_AXES, STRATEGIES, mesh_axes, parameter_axes

DOCS = pathlib.Path(__file__).resolve().parent
MESH = {'fsdp': 4, 'tensor': 2}  # of the example


def parameters() -> str:
  """Table 1, as a block of text: a regular expression may hold the bars that a table's cells end with."""
  width = max(len(pattern) for pattern, _ in PARAMETER_AXES)
  lines = [f'{pattern:{width}}  {", ".join(axes)}' for pattern, axes in PARAMETER_AXES]
  return '\n'.join(['```', *lines, '```'])


def strategies() -> str:
  """Table 2."""
  lines = ['| mesh axis | splits of the parameters | splits of the activations |', '| --- | --- | --- |']
  for axis, strategy in STRATEGIES.items():
    cells = [', '.join(f'`{name}`' for name in names) for names in (strategy.parameters, strategy.activations)]
    lines.append(f'| `{axis}` | {cells[0]} | {cells[1]} |')
  return '\n'.join(lines)


def example() -> str:
  """What a device of MESH holds of each parameter of Llama 3 8B."""
  lines = ['| parameter | shape | split by | on a device |', '| --- | --- | --- | --- |']
  whole, held = 0, 0
  for path, shape in parameter_shapes(presets.llama3_8b()).items():
    axes = [next(iter(mesh_axes(name, 'parameters', MESH)), None) for name in parameter_axes(path, len(shape))]
    local = tuple(size // MESH.get(axis, 1) for size, axis in zip(shape, axes, strict=True))
    split = ', '.join(f'`{axis}`' for axis in axes if axis)
    lines.append(f'| `{path}` | {by(shape)} | {split} | {by(local)} |')
    whole += math.prod(shape)
    held += math.prod(local)
  lines.append(f'| all parameters | {whole:,} | | {held:,} |')
  return '\n'.join(lines)


def by(shape: tuple[int, ...]) -> str:
  return ' x '.join(f'{size:,}' for size in shape)


def safe_fields() -> str:
  """Fields that a resumed run may change."""
  owners: dict[tuple[str, str], list[str]] = {}
  for cls in dict.fromkeys(dataclasses_of(Run)):
    for field in fields_of(cls).values():
      if field.safe is not None:
        owners.setdefault((field.name, field.safe.reason), []).append(f'`{cls.__name__}`')
  lines = ['| field | of | unless |', '| --- | --- | --- |']
  for (name, reason), classes in owners.items():
    lines.append(f'| `{name}` | {", ".join(classes)} | {reason} |')
  return '\n'.join(lines)


# Page -> its tables by name.
TABLES = {
  DOCS / 'concepts' / 'sharding.md': {'parameters': parameters, 'strategies': strategies, 'example': example},
  DOCS / 'how-to' / 'resume.md': {'safe_fields': safe_fields},
}


def filled(path: pathlib.Path) -> str:
  """The page with every table between its markers, `<!-- NAME -->` and `<!-- end -->`, as the code has it."""
  page = path.read_text(encoding='utf-8')
  for name, make in TABLES[path].items():
    marked = re.compile(rf'(<!-- {name} -->\n).*?(<!-- end -->)', re.DOTALL)
    assert len(marked.findall(page)) == 1, name
    page = marked.sub(lambda found, make=make: f'{found[1]}\n{make()}\n\n{found[2]}', page)
  return page


if __name__ == '__main__':
  for path in TABLES:
    path.write_text(filled(path), encoding='utf-8')
