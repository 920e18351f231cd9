"""Onto a mesh's shards, with no more in host memory than one piece."""
import gc
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import hf
from llm_jax.config.run import Mesh
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings
from tests.hf import hf_models

CASES = {  # sizes that meshes divide
  'llama': hf_models.llama(vocab_size=136, num_hidden_layers=3),
  'gpt2': hf_models.gpt2(vocab_size=136),
  'gemma2': hf_models.gemma2(vocab_size=136, head_dim=16),
  'mixtral': hf_models.mixtral(vocab_size=136, num_local_experts=4),
  'deepseek': hf_models.deepseek(vocab_size=136),
}


@pytest.mark.parametrize('case, mesh', (
  ('llama', Mesh(data=1, fsdp=2, tensor=4)),
  ('gpt2', Mesh(data=8)),
  ('gemma2', Mesh(data=2, fsdp=2, tensor=2)),
  ('mixtral', Mesh(data=2, fsdp=2, expert=2)),
  ('deepseek', Mesh(data=1, fsdp=2, tensor=2, expert=2)),
))
def test_shards_are_the_parameters(case, mesh, tmp_path):
  hf_models.make(CASES[case]).save_pretrained(tmp_path)
  config, want = hf.load_pretrained(tmp_path)
  mesh = make_mesh(mesh)
  again, got = hf.load_pretrained(tmp_path, mesh)
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, got, want)
  placed = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), got,
                        param_shardings(got, mesh))
  assert all(jax.tree.leaves(placed))
  hf.save_pretrained(tmp_path / 'ours', config, got)
  assert {k: v.tobytes() for k, v in hf_models.tensors(tmp_path / 'ours').items()} == {
    k: v.tobytes() for k, v in hf_models.tensors(tmp_path).items()}


def test_bfloat16_on_a_mesh(tmp_path):
  hf_models.make(CASES['llama']).save_pretrained(tmp_path)
  _, want = hf.load_pretrained(tmp_path)
  _, got = hf.load_pretrained(tmp_path, make_mesh(Mesh()), dtype='bfloat16')
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, jnp.asarray(b, jnp.bfloat16)), got, want)


def test_host_memory(tmp_path):
  """What NumPy holds while parameters of 12 MB are read: the parameters themselves without a mesh, one layer of one of
  them with one, plus what Python needs. And while they are written: one tensor."""
  model = hf_models.make(hf_models.llama(hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=1_024))
  model.save_pretrained(tmp_path)
  config, params = hf.load_pretrained(tmp_path)  # compiles what there is to compile
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  largest = max(tensor.nbytes for tensor in hf_models.tensors(tmp_path).values())
  assert total > 10e6 and largest == 1_024 * 256 * 4
  slack = 1_500_000
  mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
  hf.load_pretrained(tmp_path, mesh)
  assert peak(lambda: hf.load_pretrained(tmp_path)) < total + largest + slack
  assert peak(lambda: hf.load_pretrained(tmp_path, mesh)) < 3 * largest + slack < total
  assert peak(lambda: hf.save_pretrained(tmp_path / 'out', config, params)) < 2 * largest + slack < total


def peak(run):
  """Bytes that the call holds at most at a time beyond what was held before."""
  gc.collect()
  tracemalloc.start()
  try:
    run()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_progress_counts_every_byte(tmp_path):
  hf_models.make(CASES['mixtral']).save_pretrained(tmp_path)
  total, seen = sum(tensor.nbytes for tensor in hf_models.tensors(tmp_path).values()), []
  config, params = hf.load_pretrained(tmp_path, progress=lambda done, of: seen.append((done, of)))
  assert seen == sorted(seen) and seen[-1] == (total, total) and {of for _, of in seen} == {total}
  written = []
  hf.save_pretrained(tmp_path / 'out', config, params, progress=lambda done, of: written.append((done, of)))
  assert written[-1] == (total, total)
