"""Classification against transformers' ...ForSequenceClassification, and its terms one by one."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm_jax import hf, paths
from llm_jax.batch import LabelledBatch, LanguageModelBatch
from llm_jax.config.objectives import Classification
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.classification import HEAD, ClassificationObjective, class_logits, init_head
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding, param_shardings
from tests.hf import hf_models

CLASSES = 3
LENGTHS = (9, 5, 12, 2)  # tokens of each text, its last mark included
LABELS = (2, 0, 1, 0)
CASES = {
  'gpt2': (hf_models.gpt2, transformers.GPT2ForSequenceClassification),
  'llama': (hf_models.llama, transformers.LlamaForSequenceClassification),
}


def texts():
  rng = np.random.default_rng(0)
  return [rng.integers(2, hf_models.VOCAB, length) for length in LENGTHS]


def batch(rows=((0, 1), (2, 3)), time=16):
  """The texts `rows`, one after the other in a row, then padding."""
  fields = {name: np.zeros((len(rows), time), np.int32) for name in ('tokens', 'targets', 'positions', 'segment_ids')}
  weights, labels = np.zeros((len(rows), time), np.float32), np.full((len(rows), time), -1, np.int32)
  for r, row in enumerate(rows):
    at = 0
    for segment, i in enumerate(row, 1):
      ids, end = texts()[i], at + LENGTHS[i]
      fields['tokens'][r, at:end], fields['targets'][r, at:end - 1] = ids, ids[1:]
      fields['positions'][r, at:end], fields['segment_ids'][r, at:end] = np.arange(LENGTHS[i]), segment
      weights[r, at:end - 1], labels[r, end - 1] = 1 / (LENGTHS[i] - 1), LABELS[i]
      at = end
  return LabelledBatch(LanguageModelBatch(weights=weights, **fields), labels)


@functools.cache
def models(name):
  """Their decoder with a head on classes, their decoder with a head on tokens, our model and parameters."""
  config, kind = CASES[name]
  decoder = hf_models.make(config())
  torch.manual_seed(1)
  classifier = kind(config(num_labels=CLASSES, pad_token_id=0)).eval()
  base = classifier.base_model
  base.load_state_dict(decoder.base_model.state_dict())
  architecture, params = hf_models.to_ours(decoder)
  w = classifier.score.weight.detach().numpy().T.copy()
  model = Transformer(architecture, Execution(unroll=False, kernels='xla'))  # compiles faster
  return classifier, decoder, model, {**params, HEAD: {'w': w}}


@functools.cache
def ours(name, lm_weight):
  """(loss, metrics, gradient) of the mean over the texts."""
  _, _, model, params = models(name)

  def mean(params):
    loss = ClassificationObjective(model, Classification(lm_weight))(params, None, batch(), None)
    return loss.total / loss.weight, {**{k: v / loss.weight for k, v in loss.metrics.items()}, 'weight': loss.weight}

  (loss, metrics), grads = jax.device_get(jax.jit(jax.value_and_grad(mean, has_aux=True))(params))
  return float(loss), metrics, grads


def theirs(name, lm_weight):
  """(L2, L1, logits, gradients of L2 + lm_weight L1 by name), a text at a time, the mean over texts."""
  classifier, decoder, _, _ = models(name)
  classifier.zero_grad()
  decoder.zero_grad()
  l1 = l2 = 0.0
  logits = []
  for ids, label in zip(texts(), LABELS, strict=True):
    ids = torch.tensor(ids).long()[None]
    out = classifier(input_ids=ids, labels=torch.tensor([label]))
    lm = decoder(input_ids=ids, labels=ids).loss
    (out.loss / len(LENGTHS)).backward()
    (lm_weight * lm / len(LENGTHS)).backward()
    l2, l1 = l2 + out.loss.item() / len(LENGTHS), l1 + lm.item() / len(LENGTHS)
    logits.append(out.logits[0].detach().numpy())
  of = lambda model: {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
  grads, more = of(classifier), of(decoder)
  return l2, l1, np.stack(logits), {n: grads.get(n, 0) + more.get(n, 0) for n in grads | more}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('lm_weight', (0.0, 0.5))
def test_loss_and_gradients_of_transformers(name, lm_weight):
  l2, l1, _, want = theirs(name, lm_weight)
  loss, metrics, grads = ours(name, lm_weight)
  np.testing.assert_allclose([metrics['class_loss'], metrics['nll'], loss], [l2, l1, l2 + lm_weight * l1], rtol=1e-5)
  assert metrics['weight'] == len(LENGTHS)
  decoder = {key: value for key, value in grads.items() if key != HEAD}
  got = {**hf.state_dict_from_params(models(name)[2].config, decoder), 'score.weight': grads[HEAD]['w'].T}
  tied = {'lm_head.weight'} & got.keys() - want.keys()  # written twice, one parameter
  assert got.keys() - tied >= want.keys() - {'lm_head.weight'}
  for key in want.keys() & got.keys():
    if not np.any(want[key]):
      assert not got[key].any()
      continue
    error = np.linalg.norm(got[key] - want[key]) / np.linalg.norm(want[key])
    assert error <= 1e-5, f'{key}: {error}'


@pytest.mark.parametrize('name', CASES)
def test_logits_and_accuracy_of_transformers(name):
  _, _, model, params = models(name)
  _, _, want, _ = theirs(name, 0.0)

  @jax.jit
  def logits(params):
    x_BTD = model.apply({'params': params}, *(batch().text.tokens, batch().text.positions, batch().text.segment_ids),
                        method='features')
    return class_logits(model, params, x_BTD)

  got = np.asarray(logits(params))[batch().labels >= 0]
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert ours(name, 0.5)[1]['accuracy'] == (want.argmax(-1) == np.array(LABELS)).mean()


def test_a_text_alone_and_packed_is_the_same():
  _, _, model, params = models('llama')
  objective = jax.jit(ClassificationObjective(model))
  packed, alone = (objective(params, None, batch(rows), None) for rows in (((0, 1), (2, 3)), ((0,), (1,), (2,), (3,))))
  np.testing.assert_allclose(packed.total, alone.total, rtol=1e-6)
  padding = jax.tree.map(lambda a: np.concatenate([a, np.zeros_like(a) - (a.min() < 0)]), batch())
  np.testing.assert_allclose(objective(params, None, padding, None).total, packed.total, rtol=1e-6)


def test_features_are_dropped_out():
  _, _, model, params = models('llama')
  model = Transformer(dataclasses.replace(model.config, dropout=0.5))
  x_BTD = jnp.ones((1, 4, 32))
  logits = [class_logits(model, params, x_BTD, key) for key in (None, jax.random.key(0), jax.random.key(1))]
  assert not np.allclose(logits[0], logits[1]) and not np.allclose(logits[1], logits[2])
  np.testing.assert_allclose(logits[0][0, 0], np.asarray(params[HEAD]['w']).sum(0), rtol=1e-5)


def test_head_is_a_function_of_the_seed_and_sharded():
  _, _, model, _ = models('llama')
  head = init_head(model.config, CLASSES, jax.random.key(3))
  np.testing.assert_array_equal(head['w'], init_head(model.config, CLASSES, jax.random.key(3))['w'])
  assert [leaf.shape for _, leaf in paths.leaves(head)] == [(32, CLASSES)]
  mesh = jax.make_mesh((2, 4), ('fsdp', 'tensor'))
  assert param_shardings({HEAD: head}, mesh)[HEAD]['w'].spec == jax.sharding.PartitionSpec('fsdp', None)


def test_on_a_mesh_as_on_one_device():
  _, _, model, params = models('llama')
  objective = ClassificationObjective(model)
  grad = jax.jit(jax.value_and_grad(lambda p, b: objective(p, None, b, None).total))
  texts = batch(((0,), (1,), (2,), (3,)))
  want, want_grads = jax.device_get(grad(params, texts))
  mesh = make_mesh(Mesh(data=2, fsdp=2, context=2))
  with jax.set_mesh(mesh):
    placed = jax.device_put((params, texts), (param_shardings(params, mesh), batch_sharding(mesh)))
    got, got_grads = jax.device_get(grad(*placed))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for (name, a), (_, b) in zip(paths.leaves(got_grads), paths.leaves(want_grads), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name
