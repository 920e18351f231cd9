"""A small run to sample from, and what its model says, decoded by the library itself."""

import jax
import jax.numpy as jnp

from launch import sample
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.data import Data, Weighted
from llm_jax.config.experiment import Bytes, Constant, Params, Scratch, StandardLibrary, presets
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.base import make_tokenizer
from llm_jax.decode.generate import generate
from llm_jax.modules.transformer import Transformer
from llm_jax.tracking.run_config import write_config
from tests.checkpoints.checkpoint_states import make_metadata

MODEL = presets.gpt2(16, 1, 2, vocab_size=257, max_length=48)


def write_run(folder):
  """A run with two stages, of which the first has checkpoints: step 3 with other parameters, step 5 with an average."""
  stage = lambda name, init: Stage(name, Data((Weighted(StandardLibrary()),)), 5, 32, 8, Constant(1e-3), init=init)
  run = Run(MODEL, (stage('first', Scratch()), stage('second', Params('first'))), Bytes())
  write_config(folder, run)
  tokenizer = make_tokenizer(Bytes(), None)
  tokenizer.save(folder / 'tokenizer')
  with CheckpointStore(folder / 'checkpoints' / 'first', keep=2) as store:
    store.save(3, {'params': params(3)}, make_metadata(tokenizer=tokenizer.fingerprint))
    store.save(5, {'params': params(4), 'ema': params(5)}, make_metadata(tokenizer=tokenizer.fingerprint), wait=True)
  return folder


def params(seed):
  make = jax.jit(lambda key: Transformer(MODEL).init(key, jnp.zeros((1, 1), jnp.int32))['params'])
  return jax.tree.map(lambda w: 5 * w, make(jax.random.key(seed)))


def decode(tokens):
  return bytes(token for token in tokens if token != 256).decode(errors='replace')


def answer_to(weights, tokens, new, *sampling):
  """The tokens that the model itself says after `tokens`, without the end of text."""
  [answer] = generate(MODEL, weights, [tokens], new, *sampling, stop_tokens=(256,)).tokens
  return [token for token in answer if token != 256]


def text_of(weights, prompt, new, *sampling):
  """What the model itself says, decoded in one piece."""
  return decode(answer_to(weights, [256, *prompt.encode()], new, *sampling))


def call(workdir, *flags):
  return sample.main([f'--checkpoint={workdir}', *flags])
