"""What training adds for the balance of an imported model's experts: as much as `transformers` adds."""
import dataclasses
import functools
import json
import types
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from llm_jax import Transformer, hf
from llm_jax.config import presets
from llm_jax.config.model.architecture import SoftmaxRouter
from llm_jax.config.model.count import blocks
from llm_jax.hf.configs import resolved
from llm_jax.modules.execution import Execution
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.train.session import Session
from tests.hf import hf_models

SCANNED = Execution(unroll=False, kernels='xla')  # compiles faster


def added(architecture, params, batch, execution=None):
  """What an objective adds to the cross-entropy, per target."""
  execution = execution or SCANNED
  objective = LanguageModelObjective(Transformer(architecture, execution))
  loss = jax.jit(lambda params: objective(params, None, batch, None))(params)
  return float((loss.total - loss.metrics['nll']) / loss.weight)


def added_by_theirs(model, batch, **options):
  tokens, mask = (torch.tensor(np.asarray(x)).long() for x in (batch.tokens, batch.segment_ids))
  with torch.no_grad():
    found = model(tokens, labels=tokens, attention_mask=mask, **options)
    plain = model(tokens, labels=tokens, attention_mask=mask, output_router_logits=False)
  return (found.loss - plain.loss).item()


def save(folder, make=hf_models.mixtral, **changes):
  model = hf_models.make(make(**changes))
  model.save_pretrained(folder)
  return model


@pytest.mark.parametrize('make, layers, experts, chosen, unroll', [
  (hf_models.mixtral, 1, 5, 2, None),
  (hf_models.mixtral, 3, 8, 3, False),
  (functools.partial(hf_models.qwen3_moe, norm_topk_prob=False, mlp_only_layers=[0]), 3, 6, 2, False),
], ids=['mixtral', 'mixtral, scanned', 'qwen3_moe, a dense layer'])
def test_the_balance_loss_is_over_all_layers(make, layers, experts, chosen, unroll, tmp_path):
  """load_balancing_loss_func: padding left out, and the gradient of every router."""
  model = save(tmp_path, make, num_hidden_layers=layers, num_local_experts=experts, num_experts_per_tok=chosen,
               router_aux_loss_coef=0.02, output_router_logits=True)
  architecture, params = hf.load_pretrained(tmp_path)
  batch = hf_models.batch()
  segments = np.array(batch.segment_ids)
  segments[1, 30:] = 0
  batch = dataclasses.replace(batch, segment_ids=segments)
  want = added_by_theirs(model, batch)
  assert want > 0.02 and architecture.as_trained == architecture
  np.testing.assert_allclose(added(architecture, params, batch, Execution(unroll=unroll)), want, rtol=2e-4)

  tokens, mask = (torch.tensor(np.asarray(x)).long() for x in (batch.tokens, batch.segment_ids))
  model.zero_grad()
  (0.02 * model(tokens, attention_mask=mask).aux_loss + 0 * sum(each.sum() for each in model.parameters())).backward()
  objective = LanguageModelObjective(Transformer(architecture, SCANNED))
  zero = dataclasses.replace(batch, weights=np.ones_like(batch.weights) / batch.weights.size)
  balance = lambda params: objective.shared_balance(objective.features(params, zero, None)[1], 1.0, None)
  got = hf.state_dict_from_params(architecture, jax.jit(jax.grad(balance))(params))
  theirs = hf_models.gradient_in_files(model)
  for name in [name for name in theirs if 'gate.weight' in name]:
    np.testing.assert_allclose(got[name], theirs[name], atol=1e-4 * np.abs(theirs[name]).max())


@pytest.mark.parametrize('stated', [True, False])
def test_gpt_oss_balances_as_the_file_says(stated, tmp_path):
  """Its weights are those over the chosen, and its balance is by the probabilities of all experts."""
  model = hf_models.make(hf_models.gpt_oss(router_aux_loss_coef=0.9, output_router_logits=stated))
  model.save_pretrained(tmp_path)
  architecture, params = hf.load_pretrained(tmp_path)
  batch = hf_models.batch()
  want = added_by_theirs(model, batch)
  assert (want > 0.5) == stated
  np.testing.assert_allclose(added(architecture.as_trained, params, batch), want, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize('stated', [False, None])
def test_training_adds_nothing_where_the_file_says_so(stated, tmp_path):
  model = save(tmp_path, router_aux_loss_coef=0.02)
  path = tmp_path / 'config.json'
  values = json.loads(path.read_text()) | {'output_router_logits': stated}
  path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
  architecture, params = hf.load_pretrained(tmp_path)
  batch = hf_models.batch()
  assert added_by_theirs(model, batch) == 0 == added(architecture.as_trained, params, batch)
  # A call of the objective itself adds it, as one of theirs with output_router_logits=True does.
  want = added_by_theirs(model, batch, output_router_logits=True)
  np.testing.assert_allclose(added(architecture, params, batch), want, rtol=2e-4)
  # The file's coefficient comes back.
  written = hf.config_to_hf(architecture)
  assert written['router_aux_loss_coef'] == 0.02 and written['output_router_logits'] is False
  assert hf.config_from_hf(written).pattern == architecture.pattern


def test_a_stage_trains_without_it(tmp_path):
  save(tmp_path, router_aux_loss_coef=0.02)
  architecture = hf.read_config(tmp_path)
  session: Any = types.SimpleNamespace(run=types.SimpleNamespace(model_of=lambda stage: architecture),
                                       execution=Execution())
  trained = Session.transformer(session, types.SimpleNamespace(remat='none')).config
  assert trained.pattern[0].feed_forward.router.balance_weight == 0 != (
    architecture.pattern[0].feed_forward.router.balance_weight)


def test_layers_that_differ_balance_by_kind():
  """Two kinds of router and two numbers of experts: each group by itself; each alone is the loss of its layer."""
  small = presets.mixtral(16, 1, 2, 2, 24, num_experts=4, vocab_size=131)
  [block] = small.pattern

  def with_router(num_experts, weight, together):
    mixture = dataclasses.replace(block.feed_forward, num_experts=num_experts,
                                  router=SoftmaxRouter(weight, layers_together=together))
    return dataclasses.replace(block, feed_forward=mixture)

  kinds = [(4, 0.1), (6, 0.1), (4, 0.3)]  # of experts and of weights
  both = [dataclasses.replace(small, num_layers=3, pattern=tuple(with_router(*kind, together) for kind in kinds))
          for together in (False, True)]
  params = jax.jit(Transformer(both[0]).init)(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  batch = hf_models.batch()
  np.testing.assert_allclose(*(added(each, params, batch) for each in both), rtol=1e-4)


def test_an_imported_deepseek_keeps_its_bias_and_adds_nothing(tmp_path):
  """transformers trains neither: the bias is a buffer, and there is no loss for the balance."""
  model = hf_models.make(hf_models.deepseek(aux_loss_alpha=0.001, seq_aux=True))
  model.save_pretrained(tmp_path)
  architecture, params = hf.load_pretrained(tmp_path)
  batch = hf_models.batch()
  assert abs(added(architecture, params, batch)) < 1e-6
  objective = LanguageModelObjective(Transformer(architecture))
  loads = {'blocks/block_0/feed_forward/balance/bias': np.arange(16, dtype=np.float32).reshape(2, 8)}
  jax.tree.map(np.testing.assert_array_equal, objective.after_step(params, loads), params)


def test_the_presets_balance_each_layer():
  for preset in (presets.mixtral_8x7b(), presets.mixtral(16, 2, 2, 2, 24)):
    assert {block.feed_forward.router for block in blocks(preset)} == {SoftmaxRouter(0.02)}
    assert resolved(hf.config_from_hf(hf.config_to_hf(preset))) == resolved(preset)
  assert transformers.AutoConfig.for_model(**hf.config_to_hf(presets.mixtral_8x7b())).output_router_logits is False
