"""Where `launch.convert` reads a model from: a Hugging Face folder, Meta's layout, a run."""
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax

from launch.saved_models import find_checkpoint, read_model, read_params
from llm_jax.adapters.base import SavedModels
from llm_jax.config.adapters import LoRA
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.stage_init import HuggingFace
from llm_jax.data.tokenizers.base import Tokenizer, load_tokenizer
from llm_jax.data.tokenizers.chat_templates import end_of_turn
from llm_jax.data.tokenizers.files import META_FILE
from llm_jax.data.tokenizers.published import MODEL, MODEL_ENTRIES, is_deciding, read_files
from llm_jax.hf import load_meta, load_pretrained, tokenizer_files
from llm_jax.hf.configs import GENERATION_IDS, check_token_ids, listed, token_ids
from llm_jax.hf.files import inside, read_json
from llm_jax.hf.peft import read_adapter
from llm_jax.modules.low_rank import merge
from llm_jax.objectives.classification import HEAD
from llm_jax.objectives.scalar_head import REWARD, VALUE
from llm_jax.tracking.run_config import read_config
from llm_jax.tracking.task import ByteProgress

# What stands beside the weights of a folder and goes with them, text and tables only.
COMPANIONS = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json',
              'merges.txt', 'tokenizer.model', 'chat_template.jinja', 'generation_config.json')
GENERATION = 'generation_config.json'


@dataclasses.dataclass(frozen=True)
class Model:
  """What is converted.

  params: a nested dict of float32 arrays.
  files: those of a tokenizer, and a generation configuration, by name.
  kind: the entries of its `config.json` that decide which tokenizer transformers makes of the files.
  """
  config: Architecture
  params: Any
  files: dict[str, bytes]
  kind: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Adapted:
  """Adapters of a model, to be written.

  params: `query: {lora_a, lora_b}` beside each adapted weight.
  base: the Hugging Face folder of the model, or empty.
  """
  config: Architecture
  adapters: LoRA
  params: Any
  base: str


def read_hf(folder: pathlib.Path) -> Model:
  """A Hugging Face folder."""
  model = _read_folder(folder, load_pretrained)
  stated = read_json(folder, 'config.json')
  model = dataclasses.replace(model, kind={key: stated[key] for key in MODEL_ENTRIES if stated.get(key) is not None})
  check_token_ids(stated, model.config.vocab_size, 'config.json')
  in_config = {key: token_ids(stated.get(key), f'config.json: {key}') for key in GENERATION_IDS}
  given = json.loads(model.files.get(GENERATION, b'{}'))
  check_token_ids(given, model.config.vocab_size, GENERATION)
  ids = {key: ids for key, ids in in_config.items() if ids is not None and not listed(given.get(key))}
  if not ids:
    return model
  return dataclasses.replace(model, files={**model.files, GENERATION: json.dumps(given | ids, indent=2).encode()})


def read_meta(folder: pathlib.Path) -> Model:
  """A folder in Meta's layout."""
  return _read_folder(folder, load_meta)


def _read_folder(folder: pathlib.Path, load: Callable[..., tuple[Architecture, Any]]) -> Model:
  with ByteProgress('import') as bar:
    config, params = load(folder, progress=bar)
  names = {*COMPANIONS, *(name for name in read_files(folder) if name != MODEL)}
  files = {name: inside(folder, name).read_bytes() for name in sorted(names) if (folder / name).is_file()}
  for name in files:
    if name.endswith('.json'):
      read_json(folder, name)  # what cannot be read is not passed on
  return Model(config, params, files)


# ---------------------------------------------------------------------------------------------- runs
def read_run(workdir: pathlib.Path, stage: str | None, step: int | None, merge: bool = False) -> Model:
  """A checkpoint of a run: the last stage's newest one where none is named.

  merge: whether adapters may become part of the weights.
  """
  run = read_config(workdir, '--checkpoint')
  chosen, checkpoint = find_checkpoint('checkpoint', workdir, run, stage, step)
  require(merge or chosen.adapters is None, '--checkpoint', f'{workdir}, stage {chosen.name}',
          'it has adapters alone: --merge makes them part of the weights, --to_peft=DIR writes them as PEFT does')
  require(not merge or chosen.adapters is not None, '--merge', f'stage {chosen.name}',
          'it has no adapters: leave it out')
  files = _tokenizer_files(workdir / 'tokenizer', chosen.data.template)
  params = read_model(run, workdir, chosen, checkpoint, merged=True)
  for name in left_out(params):
    print(f"its head {name!r} is left out: what is written is the language model", file=sys.stderr)
    del params[name]
  return Model(run.model_of(chosen), params, files)


def left_out(params: dict[str, Any]) -> list[str]:
  """The heads of objectives among the parameters, which no language model has."""
  return [name for name in (HEAD, REWARD, VALUE) if name in params]


def read_adapters(workdir: pathlib.Path, stage: str | None, step: int | None) -> Adapted:
  """The adapters in a checkpoint of a run."""
  run = read_config(workdir, '--checkpoint')
  chosen, checkpoint = find_checkpoint('checkpoint', workdir, run, stage, step)
  if chosen.adapters is None:
    raise ConfigError('--to_peft', f'stage {chosen.name}', 'it has no adapters: use --to_hf')
  root = SavedModels(run, workdir).root(chosen)
  folder = root.init.folder if isinstance(root.init, HuggingFace) else ''
  params = read_params(checkpoint)
  for name in left_out(params):
    del params[name]
  return Adapted(run.model_of(chosen), chosen.adapters, params, folder)


def merge_adapter(model: Model, folder: pathlib.Path) -> Model:
  """The model with an adapter of PEFT in its weights."""
  lora, trained = read_adapter(folder, model.config)
  return dataclasses.replace(model, params=jax.device_get(merge(model.params, trained, lora)))


def _tokenizer_files(folder: pathlib.Path, template: str | None) -> dict[str, bytes]:
  """The run's tokenizer as Hugging Face has it: made from our own kinds, and what an imported model brought."""
  brought = {name: (folder / name).read_bytes() for name in COMPANIONS if (folder / name).is_file()}
  if not (folder / META_FILE).exists():
    return brought
  tokenizer = load_tokenizer(folder)
  made = tokenizer_files(tokenizer, template)
  others = {name: content for name, content in brought.items() if not is_deciding(name)}
  return {**others, **made, GENERATION: _generation(tokenizer, template, brought.get(GENERATION))}


def _generation(tokenizer: Tokenizer, template: str | None, brought: bytes | None) -> bytes:
  """A generation configuration: the one that was brought, in which the end of a turn that was learnt stops an answer
  too, or one of the tokenizer."""
  ends = list(end_of_turn(template, tokenizer)) if template else [tokenizer.eot]
  if brought is not None:
    values = json.loads(brought)
    known = listed(values.get('eos_token_id'))
    if not template or ends[0] in known:
      return brought
    return json.dumps({**values, 'eos_token_id': [ends[0], *known]}, indent=2).encode()
  named = {role: tokenizer.special_ids.get(tokenizer.named.get(f'{role}_token', '')) for role in ('bos', 'pad')}
  begin = [*tokenizer.begin, tokenizer.eot][0]
  ids = {'bos_token_id': begin if named['bos'] is None else named['bos'],
         'eos_token_id': ends if len(ends) > 1 else ends[0]}
  return json.dumps(ids if named['pad'] is None else {**ids, 'pad_token_id': named['pad']}).encode()
