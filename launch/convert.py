"""Brings models in and takes them out: Hugging Face folders, Llama in Meta's layout, runs.

  python -m launch.convert --from_hf=DIR --to=runs/mine              a run that launch.sample reads
  python -m launch.convert --checkpoint=runs/mine --to_hf=DIR        transformers loads it
  python -m launch.convert --from_meta=DIR --to_hf=DIR
  python -m launch.convert --from_hf=DIR --to=runs/gqa --num_kv_heads=8

One source, one target, which must be new. Nothing is executed that a folder brings: pickles and code are refused.
"""
import argparse
import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from launch import runtime
from launch.errors import refuse, refusing
from llm_jax.config import schema
from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.run import Run
from llm_jax.config.schedules import Constant
from llm_jax.config.sources import TEMPLATES, StandardLibrary
from llm_jax.config.stage import Stage
from llm_jax.config.tokenizers import HuggingFaceFile

SOURCES, TARGETS = ('from_hf', 'from_meta', 'checkpoint'), ('to', 'to_hf', 'to_meta')
STAGE = 'imported'
# What stands beside the weights of a folder and goes with them, text and tables only.
COMPANIONS = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json',
              'merges.txt', 'tokenizer.model', 'chat_template.jinja', 'generation_config.json')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.convert', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  folder = lambda name, text: parser.add_argument(f'--{name}', type=pathlib.Path, metavar='DIR', help=text)
  folder('from_hf', 'source: a Hugging Face folder with safetensors')
  folder('from_meta', "source: params.json and consolidated*.safetensors, in Meta's layout")
  folder('checkpoint', 'source: the folder of a run')
  folder('to', 'target: the folder of a run')
  folder('to_hf', 'target: a Hugging Face folder')
  folder('to_meta', "target: a folder in Meta's layout")
  parser.add_argument('--stage', help='of the run; default: the last one that has a checkpoint')
  parser.add_argument('--step', type=int, help='of the run; default: the newest valid checkpoint')
  parser.add_argument('--num_kv_heads', type=int, metavar='G',
                      help='mean-pool key and value heads to G, to be trained on (Ainslie et al. 2023); 1: multi-query')
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'),
                      help='of exported tensors; default float32')
  parser.add_argument('--max_shard_gb', type=float, default=5.0, help='of exported files; default 5')
  args = parser.parse_args(argv)
  for names in (SOURCES, TARGETS):
    given = [f'--{name}' for name in names if getattr(args, name) is not None]
    if len(given) != 1:
      refuse(f'{" ".join(given) or "nothing"} given: use one of {", ".join(f"--{name}" for name in names)}')
  return args


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    check(args)
  runtime.prepare()  # jax starts here, after the command line has been checked
  import jax
  jax.config.update('jax_platforms', 'cpu')  # a model may be larger than one accelerator
  from llm_jax.runtime.errors import CheckpointError
  try:
    with refusing():
      model = read(args)
      if args.num_kv_heads is not None:
        from llm_jax.hf import group_heads
        config, params = group_heads(model.config, model.params, args.num_kv_heads)
        model = model._replace(config=config, params=params)
      write(args, model)
  except ModuleNotFoundError as error:
    refuse(f"{error.name} is not installed: pip install '.[hf]'")
  except (CheckpointError, OSError) as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  return 0


def check(args: argparse.Namespace) -> None:
  """Refuses what can be seen to fail."""
  source = next(getattr(args, name) for name in SOURCES if getattr(args, name) is not None)
  target = next(getattr(args, name) for name in TARGETS if getattr(args, name) is not None)
  require(source.is_dir(), 'source', str(source), 'is not a folder')
  require(not target.exists() or target.is_dir() and not any(target.iterdir()), 'target', str(target),
          'there is something already: name a new folder')
  require(0 < args.max_shard_gb < math.inf, '--max_shard_gb', args.max_shard_gb, 'use a positive number')
  require(args.checkpoint is not None or (args.stage, args.step) == (None, None), '--stage, --step',
          args.stage or args.step, 'only with --checkpoint')


class Model(NamedTuple):
  """files: a tokenizer's and a generation configuration, by name."""
  config: Architecture
  params: Any
  files: dict[str, bytes]


# ------------------------------------------------------------------------------------------------ sources
def read(args: argparse.Namespace) -> Model:
  if args.checkpoint is not None:
    return read_run(args.checkpoint, args.stage, args.step)
  from llm_jax.hf import load_meta, load_pretrained
  from llm_jax.hf.files import inside, read_json
  folder, load = (args.from_hf, load_pretrained) if args.from_hf else (args.from_meta, load_meta)
  with Bar('import') as bar:
    config, params = load(folder, progress=bar)
  files = {name: inside(folder, name).read_bytes() for name in COMPANIONS if (folder / name).is_file()}
  for name in files:
    if name.endswith('.json'):
      read_json(folder, name)  # what cannot be read is not passed on
  if args.from_hf and 'generation_config.json' not in files:
    values = json.loads((folder / 'config.json').read_bytes())
    ids = {key: values[key] for key in ('bos_token_id', 'eos_token_id') if values.get(key) is not None}
    files['generation_config.json'] = json.dumps(ids).encode()
  return Model(config, params, files)


def read_run(workdir: pathlib.Path, stage: str | None, step: int | None) -> Model:
  from llm_jax.checkpoints.store import CheckpointStore
  from llm_jax.data.tokenizers.base import load_tokenizer
  from llm_jax.data.tokenizers.byte_level import META_FILE
  from llm_jax.data.tokenizers.chat_templates import end_of_turn
  from llm_jax.hf import tokenizer_files
  from llm_jax.objectives.classification import HEAD
  from llm_jax.tracking.run_config import read_config
  run = read_config(workdir, '--checkpoint')
  stores = {each.name: CheckpointStore(workdir / 'checkpoints' / each.name) for each in run.stages}
  found = [name for name, store in stores.items() if store.steps()]
  require(bool(found), '--checkpoint', str(workdir), 'has no checkpoint yet')
  require(stage in (None, *found), '--stage', stage, f'has no checkpoint, use one of {found}')
  stage = stage or found[-1]
  store = stores[stage]
  require(step in (None, *store.steps()), '--step', step, f'use one of {store.steps()}')
  checkpoint = store.latest_valid() if step is None else store.at(step)
  if checkpoint is None:  # another process has removed it
    raise ConfigError('--checkpoint', str(workdir), 'its checkpoints are gone')
  print(f'{checkpoint.path}{", averaged parameters" if checkpoint.averaged else ""}', file=sys.stderr)
  trained = next(each for each in run.stages if each.name == stage)
  folder, files = workdir / 'tokenizer', {}
  if (folder / META_FILE).exists():
    tokenizer = load_tokenizer(folder)
    template = trained.data.template
    ends = list(end_of_turn(template, tokenizer)) if template else [tokenizer.eot]
    ids = {'bos_token_id': tokenizer.eot, 'eos_token_id': ends if len(ends) > 1 else ends[0]}
    files = {**tokenizer_files(tokenizer, template), 'generation_config.json': json.dumps(ids).encode()}
  files |= {name: (folder / name).read_bytes() for name in COMPANIONS if (folder / name).is_file()}
  config = run.model_of(trained)
  params = checkpoint.read_best()
  if params.pop(HEAD, None):
    print('its classifier\'s head is left out: what is written is the language model', file=sys.stderr)
  return Model(config, params, files)


# ------------------------------------------------------------------------------------------------ targets
def write(args: argparse.Namespace, model: Model) -> None:
  from llm_jax.hf import save_meta, save_pretrained
  from llm_jax.hf.configs import generation_ids
  if args.to is not None:
    write_run(args.to, model)
    return
  with Bar('export') as bar:
    if args.to_meta is not None:
      save_meta(args.to_meta, model.config, model.params, dtype=args.dtype, progress=bar)
      return
    ids = generation_ids(model.files.get('generation_config.json', b'{}'))
    save_pretrained(args.to_hf, model.config, model.params, dtype=args.dtype, progress=bar, extra=model.files,
                    max_shard_bytes=int(args.max_shard_gb * 1e9), bos=ids['bos_token_id'], eos=ids['eos_token_id'])


def write_run(workdir: pathlib.Path, model: Model) -> None:
  """A run of one finished stage without steps: its configuration, tokenizer and checkpoint."""
  from llm_jax.checkpoints.metadata import CheckpointMetadata, Lineage
  from llm_jax.checkpoints.store import CheckpointStore
  from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
  from llm_jax.runtime.files import write_atomic
  from llm_jax.runtime.lineage import make_lineage
  from llm_jax.tracking.run_folder import Workdir
  end, tokenizer = end_of_text(model), None
  if end is None:
    print('warning: no tokenizer.json with an end of text: launch.sample cannot use the run', file=sys.stderr)
  else:
    tokenizer = HuggingFaceTokenizer(model.files['tokenizer.json'], end)
  if 'chat_template.jinja' in model.files or b'"chat_template"' in model.files.get('tokenizer_config.json', b''):
    print(f'warning: its chat template is not read: to chat, name one of {", ".join(TEMPLATES)} to launch.sample as '
          '--template; it continues text without', file=sys.stderr)
  data = Data((Weighted(StandardLibrary()),))  # no step will read it
  longest = getattr(model.config.positions, 'max_length', None) or 1_024
  stage = Stage(STAGE, data, 0, min(1_024, longest), 1, Constant(0.0))
  path = workdir / 'tokenizer'
  run = Run(model.config, (stage,), HuggingFaceFile(str(path / 'tokenizer.json'), end or ''))
  lineage = make_lineage()
  folder = Workdir(workdir)
  folder.prepare()
  path.mkdir()
  for name, content in model.files.items():
    (path / name).write_bytes(content)
  if tokenizer:
    tokenizer.save(path)
  write_atomic(workdir / 'lineage.json', json.dumps(lineage.to_json(), indent=2) + '\n')
  metadata = CheckpointMetadata(
    config=schema.to_json(run),
    stage=STAGE,
    final=True,
    tokenizer=tokenizer.fingerprint if tokenizer else None,
    lineage=Lineage(lineage))
  with CheckpointStore(workdir / 'checkpoints' / STAGE) as store:
    store.save(0, {'params': model.params}, metadata, wait=True)
  folder.bind(run)


def end_of_text(model: Model) -> str | None:
  """The special token that ends a text, by its name in `tokenizer.json`; else the one that begins it."""
  from llm_jax.hf.configs import generation_ids, listed
  if 'tokenizer.json' not in model.files:
    return None
  try:
    added = json.loads(model.files['tokenizer.json']).get('added_tokens', ())
    special = {token['id']: token['content'] for token in added if token.get('special')}
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ConfigError('tokenizer.json', type(error).__name__, f'not a Hugging Face tokenizer: {error}') from error
  ids = generation_ids(model.files.get('generation_config.json', b'{}'))
  candidates = listed(ids['eos_token_id']) + listed(ids['bos_token_id'])
  return next((special[i] for i in candidates if i in special), None)


class Bar:
  """A progress bar of bytes."""

  def __init__(self, title: str):
    self.title, self.stack, self.advance, self.done = title, contextlib.ExitStack(), None, 0

  def __enter__(self) -> 'Bar':
    return self

  def __exit__(self, *_: object) -> None:
    self.stack.close()

  def __call__(self, done: int, total: int) -> None:
    from llm_jax.tracking.task import task
    self.advance = self.advance or self.stack.enter_context(task(self.title, total, unit='B'))
    self.advance(done - self.done)
    self.done = done


def cli() -> int:
  """The program `llm-jax-convert`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
