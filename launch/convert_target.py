"""Where `launch.convert` writes a model to: a Hugging Face folder, Meta's layout, a run."""
import json
import pathlib
import sys
from typing import Any

from launch.convert_source import GENERATION, Adapted, Model
from llm_jax.checkpoints.metadata import CheckpointMetadata, Lineage
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config import schema
from llm_jax.config.data import Data, Weighted
from llm_jax.config.run import Run
from llm_jax.config.schedules import Constant
from llm_jax.config.sources import StandardLibrary
from llm_jax.config.stage import Stage
from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data.tokenizers.files import write_files
from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.data.tokenizers.published import MODEL
from llm_jax.hf import save_meta, save_pretrained
from llm_jax.hf.configs import generation_ids, listed
from llm_jax.hf.peft import write_adapter
from llm_jax.hf.tokenizer import end_of_text
from llm_jax.runtime.files import write_atomic
from llm_jax.runtime.lineage import make_lineage
from llm_jax.tracking.run_folder import workdir_at
from llm_jax.tracking.task import ByteProgress

STAGE = 'imported'  # the one stage of a run that is written
USUAL_LENGTH = 1_024  # tokens; the stage takes no step, and a stage has a sequence length


def write_hf(folder: pathlib.Path, model: Model, dtype: str, max_shard_gb: float) -> None:
  ids = generation_ids(model.files.get(GENERATION, b'{}'))
  with ByteProgress('export') as bar:
    save_pretrained(folder, model.config, model.params, dtype=dtype, progress=bar, extra=model.files,
                    max_shard_bytes=int(max_shard_gb * 1e9), bos=ids['bos_token_id'], eos=ids['eos_token_id'],
                    pad=padding_id(ids, model.config.vocab_size))


def padding_id(ids: dict[str, Any], vocab_size: int) -> int | None:
  """The token that fills up a text, where it is one of its own: transformers never trains the embedding of the one that
  `config.json` names, and needs one to classify several texts at a time."""
  others = listed(ids['bos_token_id']) + listed(ids['eos_token_id'])
  own = [i for i in listed(ids['pad_token_id']) if i < vocab_size and i not in others]
  return own[0] if own else None


def write_peft(folder: pathlib.Path, adapted: Adapted, dtype: str) -> None:
  write_adapter(folder, adapted.config, adapted.adapters, adapted.params, base=adapted.base, dtype=dtype)


def write_meta(folder: pathlib.Path, model: Model, dtype: str) -> None:
  with ByteProgress('export') as bar:
    save_meta(folder, model.config, model.params, dtype=dtype, progress=bar)


# ---------------------------------------------------------------------------------------------- runs
def write_run(workdir: pathlib.Path, model: Model) -> None:
  """A run of one finished stage without steps: its configuration, tokenizer and checkpoint."""
  tokenizer = read_tokenizer(model)
  end = None if tokenizer is None else tokenizer.end_of_text
  if tokenizer is None:
    print('warning: no tokenizer.json with an end of text: launch.sample cannot use the run', file=sys.stderr)
  run = make_run(workdir, model, end or '')
  lineage = make_lineage()
  folder = workdir_at(workdir)
  folder.prepare()
  write_files(workdir / 'tokenizer', model.files)
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
  longest = model.config.meant_length or USUAL_LENGTH
  stage = Stage(STAGE, data, steps=0, seq_len=min(USUAL_LENGTH, longest), batch_size=1, learning_rate=Constant(0.0))
  return Run(model.config, (stage,), HuggingFaceFile(str(workdir / 'tokenizer' / 'tokenizer.json'), end_of_text))


def read_tokenizer(model: Model) -> HuggingFaceTokenizer | None:
  """The model's tokenizer; None where it brings none that names an end of text, or a beginning in its place."""
  if 'tokenizer.json' not in model.files:
    return None
  ids = generation_ids(model.files.get(GENERATION, b'{}'))
  end = end_of_text(model.files, listed(ids['eos_token_id']) + listed(ids['bos_token_id']))
  if end is None:
    return None
  files = {**model.files, MODEL: json.dumps(model.kind).encode()}
  return HuggingFaceTokenizer(model.files['tokenizer.json'], end, files)
