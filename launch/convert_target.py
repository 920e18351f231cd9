"""Where `launch.convert` writes a model to: a Hugging Face folder, Meta's layout, a run."""
import json
import pathlib
import sys

from launch.convert_source import GENERATION, Model
from llm_jax.checkpoints.metadata import CheckpointMetadata, Lineage
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config import schema
from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Run
from llm_jax.config.schedules import Constant
from llm_jax.config.sources import TEMPLATES, StandardLibrary
from llm_jax.config.stage import Stage
from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.hf import save_meta, save_pretrained
from llm_jax.hf.configs import generation_ids, listed
from llm_jax.runtime.files import write_atomic
from llm_jax.runtime.lineage import make_lineage
from llm_jax.tracking.run_folder import Workdir
from llm_jax.tracking.task import ByteProgress

STAGE = 'imported'  # the one stage of a run that is written
USUAL_LENGTH = 1_024  # tokens; the stage takes no step, and a stage has a sequence length


def write_hf(folder: pathlib.Path, model: Model, dtype: str, max_shard_gb: float) -> None:
  ids = generation_ids(model.files.get(GENERATION, b'{}'))
  with ByteProgress('export') as bar:
    save_pretrained(folder, model.config, model.params, dtype=dtype, progress=bar, extra=model.files,
                    max_shard_bytes=int(max_shard_gb * 1e9), bos=ids['bos_token_id'], eos=ids['eos_token_id'])


def write_meta(folder: pathlib.Path, model: Model, dtype: str) -> None:
  with ByteProgress('export') as bar:
    save_meta(folder, model.config, model.params, dtype=dtype, progress=bar)


# ---------------------------------------------------------------------------------------------- runs
def write_run(workdir: pathlib.Path, model: Model) -> None:
  """A run of one finished stage without steps: its configuration, tokenizer and checkpoint."""
  end = end_of_text(model)
  tokenizer = None if end is None else HuggingFaceTokenizer(model.files['tokenizer.json'], end)
  warn_of_what_is_lost(model, has_tokenizer=tokenizer is not None)
  run = make_run(workdir, model, end or '')
  lineage = make_lineage()
  folder = Workdir(workdir)
  folder.prepare()
  (workdir / 'tokenizer').mkdir()
  for name, content in model.files.items():
    (workdir / 'tokenizer' / name).write_bytes(content)
  if tokenizer is not None:
    tokenizer.save(workdir / 'tokenizer')
  write_atomic(workdir / 'lineage.json', json.dumps(lineage.to_json(), indent=2) + '\n')
  metadata = CheckpointMetadata(
    config=schema.to_json(run),
    stage=STAGE,
    final=True,
    tokenizer=None if tokenizer is None else tokenizer.fingerprint,
    lineage=Lineage(lineage))
  with CheckpointStore(workdir / 'checkpoints' / STAGE) as store:
    store.save(0, {'params': model.params}, metadata, wait=True)
  folder.bind(run)


def make_run(workdir: pathlib.Path, model: Model, end_of_text: str) -> Run:
  data = Data((Weighted(StandardLibrary()),))  # a stage has data, and no step will read it
  longest = getattr(model.config.positions, 'max_length', None) or USUAL_LENGTH
  stage = Stage(STAGE, data, steps=0, seq_len=min(USUAL_LENGTH, longest), batch_size=1, learning_rate=Constant(0.0))
  return Run(model.config, (stage,), HuggingFaceFile(str(workdir / 'tokenizer' / 'tokenizer.json'), end_of_text))


def warn_of_what_is_lost(model: Model, has_tokenizer: bool) -> None:
  if not has_tokenizer:
    print('warning: no tokenizer.json with an end of text: launch.sample cannot use the run', file=sys.stderr)
  has_template = ('chat_template.jinja' in model.files
                  or b'"chat_template"' in model.files.get('tokenizer_config.json', b''))
  if has_template:
    print(f'warning: its chat template is not read: to chat, name one of {", ".join(TEMPLATES)} to launch.sample as '
          '--template; it continues text without', file=sys.stderr)


def end_of_text(model: Model) -> str | None:
  """The special token that ends a text, by its name in `tokenizer.json`; else the one that begins it."""
  if 'tokenizer.json' not in model.files:
    return None
  try:
    added = json.loads(model.files['tokenizer.json']).get('added_tokens', ())
    special = {token['id']: token['content'] for token in added if token.get('special')}
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ConfigError('tokenizer.json', type(error).__name__, f'not a Hugging Face tokenizer: {error}') from error
  ids = generation_ids(model.files.get(GENERATION, b'{}'))
  candidates = listed(ids['eos_token_id']) + listed(ids['bos_token_id'])
  return next((special[i] for i in candidates if i in special), None)
