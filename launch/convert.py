"""Brings models in and takes them out: Hugging Face folders, Llama in Meta's layout, runs.

  python -m launch.convert --from_hf=DIR --to=runs/mine              a run that launch.sample reads
  python -m launch.convert --checkpoint=runs/mine --to_hf=DIR        transformers loads it
  python -m launch.convert --from_meta=DIR --to_hf=DIR
  python -m launch.convert --checkpoint=runs/mine --merge --to_hf=DIR        adapters as part of the weights
  python -m launch.convert --checkpoint=runs/mine --to_peft=DIR              adapters alone; peft loads them
  python -m launch.convert --from_hf=DIR --adapter=PEFT --to_hf=NEW          merges an adapter of PEFT
  python -m launch.convert --checkpoint=runs/mine --to=runs/int8 --quantize=int8 --score=TEXT   loss before and after
  python -m launch.convert --from_hf=DIR --to=runs/gqa --num_kv_heads=8
  python -m launch.convert --from_hf=DIR --to_hf=NEW --vocab_size=32064   rows for tokens that were added
  python -m launch.convert --from_hf=Qwen/Qwen3-0.6B --to=runs/qwen       from the Hugging Face hub
  python -m launch.convert --checkpoint=runs/mine --push=OWNER/NAME       to it; --dry_run shows what would be written

One source, one target, which must be new. Nothing is executed that a folder brings: pickles and code are refused.
"""
import argparse
import dataclasses
import math
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch import runtime
from launch.errors import refuse, refusing
from launch.place_flags import local_path
from llm_jax.config.errors import require
from llm_jax.config.hub_names import REPOSITORY, is_hub_name
from llm_jax.config.packages import is_installed

if TYPE_CHECKING:
  from launch.convert_source import Model

SOURCES = ('from_hf', 'from_meta', 'checkpoint')
QUANTIZED = ('int8', 'int4', 'nf4')
TARGETS = ('to', 'to_hf', 'to_meta', 'to_peft', 'push')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.convert', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  folders = {
    'from_hf': 'source: a Hugging Face folder with safetensors, or the name of a model on the hub',
    'from_meta': "source: params.json and consolidated*.safetensors, in Meta's layout",
    'checkpoint': 'source: the folder of a run',
    'to': 'target: the folder of a run',
    'to_hf': 'target: a Hugging Face folder',
    'to_meta': "target: a folder in Meta's layout",
    'to_peft': 'target: a folder of PEFT, with the adapters of a stage alone',
    'adapter': 'with --from_hf: a folder of PEFT, whose adapter becomes part of the weights',
  }
  for name, words in folders.items():
    parser.add_argument(f'--{name}', type=local_path, metavar='DIR', help=words)
  parser.add_argument('--push', metavar='OWNER/NAME', help='target: a model on the Hugging Face hub, with a model card')
  parser.add_argument('--private', action='store_true', help='--push: make a private repository where there is none')
  parser.add_argument('--dry_run', action='store_true', help='--push: show the files and the card, and send nothing')
  parser.add_argument('--revision', help='of --from_hf on the hub: branch, tag or commit; default: the newest commit')
  parser.add_argument('--stage', help='of the run; default: the last one that has a checkpoint')
  parser.add_argument('--step', type=int, help='of the run; default: the newest valid checkpoint')
  parser.add_argument('--merge', action='store_true', help='make the adapters of a stage part of the weights')
  parser.add_argument('--num_kv_heads', type=int, metavar='G',
                      help='mean-pool key and value heads to G, to be trained on (Ainslie et al. 2023); 1: multi-query')
  parser.add_argument('--vocab_size', type=int, metavar='N',
                      help='give embedding and head N rows; new ones are the mean of the old')
  parser.add_argument('--quantize', choices=QUANTIZED,
                      help='with --to: store the matrices of the blocks in 8 or 4 bits, all else in bfloat16')
  parser.add_argument('--score', type=local_path, metavar='FILE',
                      help='with --quantize: a text on which the model is scored before and after')
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'),
                      help='of exported tensors; default float32')
  parser.add_argument('--max_shard_gb', type=float, default=5.0, help='of exported files; default 5')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    check(args)
  runtime.prepare()  # jax starts here, after the command line has been checked
  import jax

  from llm_jax.runtime.errors import CheckpointError, FileError
  jax.config.update('jax_platforms', 'cpu')  # a model may be larger than one accelerator
  try:
    with refusing():
      convert(args)
  except ModuleNotFoundError as error:
    refuse(f"{error.name} is not installed: pip install '.[hf]'")
  except (CheckpointError, FileError, OSError) as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  return 0


def convert(args: argparse.Namespace) -> None:
  """Reads the source, changes it where that is wanted, and writes the target."""
  from launch import convert_source, convert_target
  if args.to_peft is not None:
    adapted = convert_source.read_adapters(args.checkpoint, args.stage, args.step)
    convert_target.write_peft(args.to_peft, adapted, args.dtype)
    return
  if args.checkpoint is not None:
    model = convert_source.read_run(args.checkpoint, args.stage, args.step, args.merge)
  elif args.from_hf is not None:
    from llm_jax.runtime.hub import model_folder
    model = convert_source.read_hf(model_folder(args.from_hf, args.revision))
  else:
    model = convert_source.read_meta(args.from_meta)
  if args.adapter is not None:
    model = convert_source.merge_adapter(model, args.adapter)
  if args.vocab_size is not None:
    from llm_jax.hf import resize_vocabulary
    config, params = resize_vocabulary(model.config, model.params, args.vocab_size)
    model = dataclasses.replace(model, config=config, params=params)
  if args.num_kv_heads is not None:
    from llm_jax.hf import group_heads
    config, params = group_heads(model.config, model.params, args.num_kv_heads)
    model = dataclasses.replace(model, config=config, params=params)
  if args.quantize is not None:
    model = quantize(args, model)
  if args.to is not None:
    convert_target.write_run(args.to, model)
  elif args.to_hf is not None:
    convert_target.write_hf(args.to_hf, model, args.dtype, args.max_shard_gb)
  elif args.push is not None:
    push(args, model)
  else:
    convert_target.write_meta(args.to_meta, model, args.dtype)


def quantize(args: argparse.Namespace, model: 'Model') -> 'Model':
  """The model with quantised weights; prints a table of what that saves and, on a text, costs."""
  from launch import convert_quantized
  quantized = convert_quantized.quantize(model, args.quantize)
  rows = {'float32': model, args.quantize: quantized}
  print(convert_quantized.table(rows, args.score))
  return quantized


def push(args: argparse.Namespace, model: 'Model') -> None:
  """Writes a folder for the hub, with its card, and sends it."""
  from launch import convert_target, hub_push
  from launch.model_card import card_of_model, card_of_run
  if args.checkpoint is None:
    card = card_of_model(args.push, model.config, str(args.from_hf or args.from_meta))
  else:
    card = card_of_run(args.push, args.checkpoint, model.config, args.stage, args.step)
  with tempfile.TemporaryDirectory() as parent:
    folder = pathlib.Path(parent) / 'model'
    convert_target.write_hf(folder, model, args.dtype, args.max_shard_gb)
    (folder / 'README.md').write_text(card, encoding='utf-8')
    if args.dry_run:
      hub_push.show(folder, args.push)
    else:
      print(hub_push.send(folder, args.push, args.private))


def check(args: argparse.Namespace) -> None:
  """Refuses what can be seen to fail."""
  source = the_one(args, SOURCES)
  target = the_one(args, TARGETS)
  check_source(args, source)
  if args.push is None:
    is_new = not target.exists() or target.is_dir() and not any(target.iterdir())
    require(is_new, 'target', str(target), 'there is something already: name a new folder')
  else:
    check_push(args.push, args.dry_run)
  for flag in ('private', 'dry_run'):
    require(args.push is not None or not getattr(args, flag), f'--{flag}', True, 'only with --push')
  require(args.adapter is None or args.from_hf is not None, '--adapter', str(args.adapter), 'only with --from_hf')
  require(args.to_peft is None or args.checkpoint is not None, '--to_peft', str(args.to_peft), 'only with --checkpoint')
  changes = args.merge or args.vocab_size is not None or args.num_kv_heads is not None
  require(args.to_peft is None or not changes, '--to_peft', str(args.to_peft),
          'writes the adapters as they are: leave out --merge, --vocab_size and --num_kv_heads')
  require(args.quantize is None or args.to is not None, '--quantize', args.quantize, 'only with --to')
  require(args.score is None or args.quantize is not None, '--score', str(args.score), 'only with --quantize')
  require(args.score is None or args.score.is_file(), '--score', str(args.score), 'is no file')
  require(not args.merge or args.checkpoint is not None, '--merge', 'given', 'only with --checkpoint')
  require(args.vocab_size is None or args.vocab_size > 0, '--vocab_size', args.vocab_size, 'use a positive number')
  require(0 < args.max_shard_gb < math.inf, '--max_shard_gb', args.max_shard_gb, 'use a positive number')
  chooses_checkpoint = args.stage is not None or args.step is not None
  require(args.checkpoint is not None or not chooses_checkpoint, '--stage, --step', args.stage or args.step,
          'only with --checkpoint')


def check_source(args: argparse.Namespace, source: pathlib.Path) -> None:
  on_hub = args.from_hf is not None and is_hub_name(str(source))
  if on_hub:
    require(is_installed('huggingface_hub'), '--from_hf', str(source), "is no folder here, and what asks the Hugging "
            "Face hub for it is not installed: pip install 'llm_jax[hub]', or name a folder")
  else:
    require(source.is_dir(), 'source', str(source), 'is not a folder')
  require(args.revision is None or on_hub, '--revision', args.revision, 'only with the name of a model on the hub')


def check_push(name: str, dry_run: bool) -> None:
  require(REPOSITORY.fullmatch(name) is not None, '--push', name, 'write it as OWNER/NAME')
  require(dry_run or is_installed('huggingface_hub'), '--push', name,
          "needs huggingface_hub, which is not installed: pip install 'llm_jax[hub]'")


def the_one(args: argparse.Namespace, names: Sequence[str]) -> Any:
  """The value of the one flag of `names` that is given."""
  given = [name for name in names if getattr(args, name) is not None]
  if len(given) != 1:
    flags = ' '.join(f'--{name}' for name in given) or 'nothing'
    refuse(f'{flags} given: use one of {", ".join(f"--{name}" for name in names)}')
  return getattr(args, given[0])


def cli() -> int:
  """The program `llm-jax-convert`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
