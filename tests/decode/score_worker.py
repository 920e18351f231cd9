"""What each of several real processes does in test_score.py: scores on a mesh of all devices, and prints what it found.

  score_worker.py LISTS      'same', or 'other' where process 1 asks something else
"""
import json
import sys

import jax

from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Mesh
from llm_jax.decode.score import score
from llm_jax.runtime import joining
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings
from tests.decode.test_score import CONFIG, SCANNED, questions
from tests.modules.decoders import make_params


def main(lists):
  joining.join()
  mesh = make_mesh(Mesh(data=-1))
  params = make_params(CONFIG)
  place = lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
  params = jax.tree.map(place, params, param_shardings(params, mesh))
  contexts, continuations = questions(CONFIG.vocab_size, shared=11)
  if lists == 'other' and jax.process_index() == 1:
    contexts[0] = contexts[0][:-1]
  try:
    found = score(CONFIG, params, contexts, continuations, execution=SCANNED, batch_size=8)
    said = {'log_probs': [one.log_probs for one in found], 'is_largest': [one.is_largest for one in found]}
  except ConfigError as error:
    said = {'error': str(error)}
  print(json.dumps({'processes': jax.process_count(), **said}), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
