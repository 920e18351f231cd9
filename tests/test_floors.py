"""The floors of the house: a file imports only from lower floors, and from siblings inside its own folder."""
import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = (
  ('llm_jax/config', 'llm_jax/batch.py', 'llm_jax/paths.py'),
  ('llm_jax/runtime', 'llm_jax/blockwise.py', 'llm_jax/draw.py', 'llm_jax/matrices.py'),
  ('llm_jax/data', 'llm_jax/sharding', 'llm_jax/optim'),
  ('llm_jax/modules', 'llm_jax/plan'),
  ('llm_jax/objectives', 'llm_jax/decode', 'llm_jax/hf', 'llm_jax/checkpoints', 'llm_jax/tracking'),
  ('llm_jax/retrieve', 'llm_jax/harness', 'llm_jax/rollout'),
  ('llm_jax/adapters', 'llm_jax/evaluation', 'llm_jax/prompting'),
  ('llm_jax/train', 'llm_jax/report'),
  ('llm_jax/arena', 'llm_jax/explain'),
  ('experiments', 'launch'),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FACE = 'llm_jax/__init__.py'  # it hands out what the floors hold; nothing inside the house imports it
HEAVY = ('jax', 'jaxlib', 'flax', 'numpy', 'optax', 'orbax', 'grain', 'torch', 'transformers', 'matplotlib')
# A wrong command line is refused at once, so what reads it must not wait for jax.
LIGHT = ('llm_jax/config/', 'llm_jax/plan/', 'llm_jax/sharding/check.py', 'llm_jax/sharding/rounds.py',
         'llm_jax/runtime/address.py', 'launch/errors.py', 'launch/evaluate_flags.py', 'launch/experiment_file.py',
         'launch/field_help.py', 'launch/flags.py', 'launch/overrides.py', 'launch/sample_flags.py', 'experiments/')


def room_of(path: str) -> str | None:
  """`llm_jax/data/sources/documents.py` -> `llm_jax/data`; None for what is in no room."""
  return next((room for room in FLOOR if path == room or path.startswith(room + '/')), None)


def imports(source: str, path: str):
  """Yields (line, dotted name) of every import in a file, wherever it stands; relative ones are resolved."""
  package = path.split('/')[:-1]
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      base = package[:len(package) - node.level + 1] if node.level else []
      module = '.'.join([*base, *([node.module] if node.module else [])])
      for alias in node.names:
        yield node.lineno, f'{module}.{alias.name}'


def target_room(name: str) -> str | None:
  """The room that a dotted name of the house is in; '' for the house's face; None for other packages."""
  parts = name.split('.')
  if parts[0] not in ('llm_jax', 'launch', 'experiments'):
    return None
  room = room_of('/'.join(parts[:2])) or room_of('/'.join(parts[:2]) + '.py') or room_of(parts[0])
  return room or ''


def violations(source: str, path: str) -> list[str]:
  """What a file imports and must not, one readable line each."""
  found, room = [], room_of(path)
  if room is None and path != FACE:
    return [f'{path}: is on no floor: put it into a folder of the house, or name its floor in tests/test_floors.py']
  for line, name in imports(source, path):
    if any(path.startswith(light) for light in LIGHT) and name.split('.')[0] in HEAVY:
      found.append(f'{path}:{line}: imports {name}, but must start in milliseconds')
    target = target_room(name)
    if target is None or path == FACE or target == room:
      continue
    if target == '':
      found.append(f'{path}:{line}: imports {name} from the face of the house: import it from its own file')
    elif FLOOR[target] >= FLOOR[room]:
      found.append(f'{path}:{line}: floor {FLOOR[room]} ({room}) imports {name} of floor {FLOOR[target]} ({target})')
  return found


def test_files_import_only_from_lower_floors():
  found = []
  for top in ('llm_jax', 'launch', 'experiments'):
    for file in sorted((ROOT / top).rglob('*.py')):
      path = file.relative_to(ROOT).as_posix()
      found += violations(file.read_text(encoding='utf-8'), path)
  assert not found, 'imports against the floors:\n' + '\n'.join(found)


def test_a_violation_is_caught():
  for path, source, words in (
    ('llm_jax/data/x.py', 'from llm_jax.train import loop', 'floor 2 (llm_jax/data) imports llm_jax.train.loop of'),
    ('llm_jax/data/x.py', 'from llm_jax.sharding import mesh', 'of floor 2 (llm_jax/sharding)'),
    ('llm_jax/config/x.py', 'def f():\n  from llm_jax import batch', 'x.py:2: floor 0'),
    ('llm_jax/modules/x.py', 'from ..decode import generate', 'of floor 4 (llm_jax/decode)'),
    ('llm_jax/train/x.py', 'import launch.train', 'of floor 9 (launch)'),
    ('llm_jax/train/x.py', 'from llm_jax import Transformer', 'from the face of the house'),
    ('llm_jax/train/x.py', 'from llm_jax.report import page', 'of floor 7 (llm_jax/report)'),
    ('llm_jax/config/presets/x.py', 'import jax.numpy as jnp', 'must start in milliseconds'),
    ('llm_jax/config/x.py', 'import numpy', 'must start in milliseconds'),
    ('llm_jax/misc/x.py', '', 'is on no floor'),
  ):
    assert any(words in line for line in violations(source, path)), (path, source, violations(source, path))


def test_what_the_floors_allow():
  for path, source in (
    ('llm_jax/train/x.py', 'from llm_jax.train import state\nfrom llm_jax.data.mixture import make_mixture'),
    ('llm_jax/modules/kernels/x.py', 'from llm_jax.modules import cache\nimport jax'),
    ('llm_jax/data/x.py', 'from llm_jax import batch, paths\nfrom llm_jax.config.errors import require'),
    ('launch/x.py', 'from launch.errors import refuse\nfrom llm_jax.train import loop'),
    ('llm_jax/__init__.py', 'from llm_jax.decode import generate'),
  ):
    assert violations(source, path) == []


def test_every_room_exists():
  assert [room for room in FLOOR if not (ROOT / room).exists()] == []


def test_what_needs_no_trainer_imports_none():
  """Every program but launch.train and launch.plan --compile, and what it is made of."""
  files = [path for path in (ROOT / 'launch').glob('*.py') if path.name not in ('train.py', 'plan_compile.py')]
  assert {'convert.py', 'sample.py', 'report.py'} <= {path.name for path in files}
  for path in files:
    source = path.read_text(encoding='utf-8')
    assert not [name for _, name in imports(source, f'launch/{path.name}') if name.startswith('llm_jax.train')], path
