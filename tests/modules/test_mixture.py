"""Mixture of experts against `transformers`, against loops over tokens and experts, and against the papers' sums."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from llm_jax import paths
from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  ClampedGLU,
  MixtureOfExperts,
  SigmoidRouter,
  SoftmaxRouter,
)
from llm_jax.modules import mixture
from llm_jax.modules.execution import Execution
from llm_jax.modules.feed_forward import inner
from llm_jax.modules.kernels.experts import combine, dispatch, grouped_linear, sort_rows
from llm_jax.modules.layer_inputs import LayerInputs

B, T, D, F, E = 3, 12, 16, 24, 8
KERNELS = pytest.mark.parametrize('kernels', ('cpu', 'xla'))
SOFTMAX = MixtureOfExperts(E, 2, GLU(F), SoftmaxRouter(0.02, 0.003))
SIGMOID = MixtureOfExperts(E, 3, GLU(F), SigmoidRouter(groups=4, top_groups=2, scale=2.5), shared=GLU(20))
BIASED = MixtureOfExperts(E, 3, ClampedGLU(F, limit=0.4, bias=True), SoftmaxRouter(bias=True),
                          shared=MLP(20, bias=True))
PLAIN = MixtureOfExperts(E, 2, MLP(F, 'relu'), SigmoidRouter())
# Two documents and padding in the first row, padding alone in the last.
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * T, [0] * T], np.int32)


def module(config, kernels=None):
  return mixture.MixtureOfExperts(config, Execution(kernels=kernels), 0.3, 0.3)


def context(segments):
  return LayerInputs((), jnp.broadcast_to(jnp.arange(T), (B, T)), segments, None)


def inputs(seed=0):
  return np.random.default_rng(seed).standard_normal((B, T, D)).astype(np.float32)


@functools.cache
def params(config):
  """Random, the balance bias too, large enough to change choices."""
  made = jax.eval_shape(module(config).init, jax.random.key(0), inputs(), context(SEGMENTS))['params']
  random = np.random.default_rng(1)
  std = lambda path: 0.4 if 'router' in path or 'balance' in path else 0.15
  return paths.map_named(lambda path, leaf: (std(path) * random.standard_normal(leaf.shape)).astype(np.float32), made)


@functools.cache
def compiled(config, kernels):
  return jax.jit(lambda p, x, segments: module(config, kernels).apply({'params': p}, x, context(segments)))


def run(config, kernels='xla', segments=SEGMENTS):
  return compiled(config, kernels)(params(config), inputs(), segments)


# ------------------------------------------------------------------------------------------------ transformers
def load(block, tree, gate_bias=None):
  """Our weights in a block of `transformers`, whose matrices are [out, in], gate and up in one."""
  experts = {name: torch.tensor(tree['experts'][name]['w'].swapaxes(1, 2)) for name in ('gate', 'up', 'down')}
  with torch.no_grad():
    block.experts.gate_up_proj.copy_(torch.cat([experts['gate'], experts['up']], 1))
    block.experts.down_proj.copy_(experts['down'])
    block.gate.weight.copy_(torch.tensor(tree['router']['w'].T))
    if 'balance' in tree:
      block.gate.e_score_correction_bias.copy_(torch.tensor(tree['balance']['bias']))
    for name, leaf in tree.get('shared', {}).items():
      getattr(block.shared_experts, f'{name}_proj').weight.copy_(torch.tensor(leaf['w'].T))
  return block


@KERNELS
def test_mixtral(kernels):
  config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=2)
  block = load(MixtralSparseMoeBlock(config), params(SOFTMAX))
  got, routing = run(SOFTMAX, kernels, np.ones_like(SEGMENTS))
  want = block(torch.tensor(inputs())).detach().numpy()
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  logits = block.gate(torch.tensor(inputs()))[0]
  balance = load_balancing_loss_func((logits,), E, 2).item()
  np.testing.assert_allclose(routing.balance_B, [balance] * B, rtol=1e-6)
  mask = SEGMENTS > 0
  balance = load_balancing_loss_func((logits,), E, 2, torch.tensor(mask)).item()
  np.testing.assert_allclose(run(SOFTMAX, kernels)[1].balance_B, [balance] * B, rtol=1e-6)


@KERNELS
@pytest.mark.parametrize('weights_over', ('chosen', 'all'))
def test_qwen3(kernels, weights_over):
  """With the probabilities over the chosen, and as they are."""
  layer = dataclasses.replace(SOFTMAX, router=SoftmaxRouter(weights_over=weights_over))
  block = load(Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(
    hidden_size=D, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=2,
    norm_topk_prob=weights_over == 'chosen')), params(layer))
  want = block(torch.tensor(inputs())).detach().numpy()
  np.testing.assert_allclose(run(layer, kernels, np.ones_like(SEGMENTS))[0], want, rtol=0, atol=1e-5)


@KERNELS
def test_deepseek(kernels):
  """Sigmoids, bias, groups, scale, shared expert."""
  config = DeepseekV3Config(
    hidden_size=D, moe_intermediate_size=F, n_routed_experts=E, num_experts_per_tok=3, n_group=4, topk_group=2,
    routed_scaling_factor=2.5, norm_topk_prob=True, n_shared_experts=1, num_local_experts=E)
  tree = params(SIGMOID)
  config.moe_intermediate_size = 20  # of the shared expert, which the class derives from the routed ones'
  block = DeepseekV3MoE(config)
  config.moe_intermediate_size = F
  block.experts = type(block.experts)(config)
  load(block, tree)
  got, routing = run(SIGMOID, kernels, np.ones_like(SEGMENTS))
  np.testing.assert_allclose(got, block(torch.tensor(inputs())).detach().numpy(), rtol=0, atol=1e-5)
  chosen = block.gate(torch.tensor(inputs()))[2].numpy()
  np.testing.assert_array_equal(routing.load_E, np.bincount(chosen.ravel(), minlength=E))
  unbiased = {**tree, 'balance': {'bias': np.zeros(E, np.float32)}}
  assert (compiled(SIGMOID, kernels)(unbiased, inputs(), np.ones_like(SEGMENTS))[1].load_E != routing.load_E).any()


@KERNELS
def test_gpt_oss(kernels):
  """Biases, the clamped SwiGLU at values that are cut, and the softmax over the chosen."""
  expert = ClampedGLU(F, limit=0.6, alpha=1.5, bias=True)
  ours = MixtureOfExperts(E, 4, expert, SoftmaxRouter(bias=True))
  block = GptOssMLP(GptOssConfig(hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=4,
                                 swiglu_limit=0.6, swiglu_alpha=1.5))
  tree = params(ours)
  with torch.no_grad():
    for leaf in ('w', 'b'):
      gate, up = (torch.tensor(tree['experts'][name][leaf]) for name in ('gate', 'up'))
      target = block.experts.gate_up_proj if leaf == 'w' else block.experts.gate_up_proj_bias
      target.copy_(torch.stack([gate, up], -1).flatten(-2))
    block.experts.down_proj.copy_(torch.tensor(tree['experts']['down']['w']))
    block.experts.down_proj_bias.copy_(torch.tensor(tree['experts']['down']['b']))
    block.router.weight.copy_(torch.tensor(tree['router']['w'].T))
    block.router.bias.copy_(torch.tensor(tree['router']['b']))
    want, _ = block(torch.tensor(inputs()))
  np.testing.assert_allclose(run(ours, kernels, np.ones_like(SEGMENTS))[0], want, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ loops
def dense(config, tree, x, segments):
  """Every expert on every token, then the chosen ones' sum."""
  logits = x @ tree['router']['w'] + tree['router'].get('b', 0)
  if isinstance(config.router, SoftmaxRouter):
    score = choose = jax.nn.softmax(logits)
  else:
    score = jax.nn.sigmoid(logits)
    choose = score + tree['balance']['bias']
    grouped = choose.reshape(B, T, config.router.groups, -1)
    best = jnp.sort(grouped)[..., -2:].sum(-1)
    is_open = best >= jnp.sort(best)[..., -config.router.top_groups, None]
    choose = jnp.where(is_open[..., None], grouped, -1e9).reshape(B, T, E)
  score = jnp.where(choose >= jnp.sort(choose)[..., -config.top_k, None], score, 0)
  weight = score / score.sum(-1, keepdims=True) * getattr(config.router, 'scale', 1)
  weight = jnp.where(segments[..., None] > 0, weight, 0)

  def expert_ffn(part, leaves, x):
    names, f = inner(part)
    project = lambda name, x: x @ leaves[name]['w'] + leaves[name].get('b', 0)
    return project('down', f(*(project(name, x) for name in names)))
  y = sum(weight[..., e, None] * expert_ffn(config.expert, jax.tree.map(lambda leaf: leaf[e], tree['experts']), x)  # noqa: B023
          for e in range(E))
  return y + (expert_ffn(config.shared, tree['shared'], x) if 'shared' in tree else 0)


LAYERS = {'softmax': SOFTMAX, 'sigmoid': SIGMOID, 'mlp': PLAIN, 'biases': BIASED}


@pytest.mark.parametrize('name, kernels', [
  ('softmax', 'cpu'), ('sigmoid', 'cpu'), ('sigmoid', 'xla'), ('mlp', 'xla'), ('biases', 'cpu'), ('biases', 'xla'),
  pytest.param('softmax', 'xla', marks=pytest.mark.slow), pytest.param('mlp', 'cpu', marks=pytest.mark.slow)])
def test_dropless_is_dense(name, kernels):
  """Values and all gradients, padding included."""
  config, direction = LAYERS[name], inputs(7)
  ours = lambda p, x: (compiled(config, kernels)(p, x, SEGMENTS)[0] * direction).sum()
  loop = lambda p, x: (dense(config, p, x, SEGMENTS) * direction).sum()
  np.testing.assert_allclose(run(config, kernels)[0], jax.jit(functools.partial(dense, config))(
    params(config), inputs(), SEGMENTS), rtol=0, atol=1e-6)
  got, want = (jax.jit(jax.grad(f, (0, 1)))(params(config), inputs()) for f in (ours, loop))
  for (path, a), (_, b) in zip(paths.leaves(got), paths.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= 1e-6 * max(np.linalg.norm(b), 1), path
    assert (np.abs(b).max() > 0) == ('bias' not in path), path  # all is trained, apart from the bias


def test_capacity_drops_the_latest():
  """First come, first served in each sequence; padding takes no place. The loads count what was asked for."""
  config = MixtureOfExperts(E, 2, GLU(F), SoftmaxRouter(), capacity_factor=0.7)  # 0.7 x 12 x 2 / 8 = 2.1
  _, routing = run(config)
  x, tree = inputs(), params(config)
  probability = np.asarray(jax.nn.softmax(x @ tree['router']['w']))
  want, served, dropped = np.zeros_like(x), np.zeros((B, E), int), 0
  for b in range(B):
    for t in range(T):
      best = np.argsort(-probability[b, t])[:2]
      for e in best if SEGMENTS[b, t] else ():
        if served[b, e] == 3:
          dropped += 1
          continue
        served[b, e] += 1
        w = {name: leaf['w'][e] for name, leaf in tree['experts'].items()}
        h = np.asarray(jax.nn.silu(x[b, t] @ w['gate'])) * (x[b, t] @ w['up'])
        want[b, t] += probability[b, t, e] / probability[b, t, best].sum() * (h @ w['down'])
  assert dropped >= 3
  for kernels in ('cpu', 'xla'):
    np.testing.assert_allclose(run(config, kernels)[0], want, rtol=0, atol=1e-5)
  assert routing.load_E.sum() == 2 * (SEGMENTS > 0).sum() > served.sum()


def test_sequence_balance_and_z():
  """Equations 17 to 20 of DeepSeek-V3, sum by sum, in float64; and ST-MoE's equation 5."""
  logits = inputs().astype(np.float64) @ params(SIGMOID)['router']['w']
  routing, score = run(SIGMOID)[1], 1 / (1 + np.exp(-logits))
  want = np.zeros(B)
  for b in range(B):
    tokens = np.flatnonzero(SEGMENTS[b])
    f, p = np.zeros(E), np.zeros(E)
    for t in tokens:
      f[np.argsort(-score[b, t])[:3]] += E / (3 * len(tokens))
      p += score[b, t] / score[b, t].sum() / len(tokens)
    want[b] = (f * p).sum()
  np.testing.assert_allclose(routing.balance_B, want, rtol=1e-5)
  np.testing.assert_allclose(routing.loss_B, 1e-4 * want, rtol=1e-5)
  assert want[0] > 1 and want[2] == 0

  logits = inputs().astype(np.float64) @ params(SOFTMAX)['router']['w']
  routing = run(SOFTMAX)[1]
  z = [np.mean(np.log(np.exp(logits[b][SEGMENTS[b] > 0]).sum(-1)) ** 2) if b < 2 else 0 for b in range(B)]
  np.testing.assert_allclose(routing.z_B, z, rtol=1e-5)
  np.testing.assert_allclose(routing.loss_B, 0.02 * routing.balance_B + 0.003 * np.array(z), rtol=1e-5)


# ------------------------------------------------------------------------------------------------ kernels
@pytest.mark.parametrize('sizes', ((70, 0, 130, 1, 40), (0, 0, 0, 0, 0), (0, 256, 0, 0, 0), (3, 2, 1, 1, 1)), ids=str)
def test_grouped_linear(sizes):
  """Against a loop, empty experts and rows of nobody included; derivatives against those of ragged_dot's loop."""
  rows = 256 if sum(sizes) > 8 else 11
  random = np.random.default_rng(0)
  x, w, dy = (random.standard_normal(s).astype(np.float32) for s in ((rows, 6), (5, 6, 7), (rows, 7)))
  owner = np.concatenate([np.repeat(np.arange(5), sizes), np.full(rows - sum(sizes), 5)])
  whole = np.concatenate([w, np.zeros((1, 6, 7), np.float32)])
  y, dx = np.einsum('md,mdf->mf', x, whole[owner]), np.einsum('mf,mdf->md', dy, whole[owner])
  dw = np.stack([x[owner == e].T @ dy[owner == e] for e in range(5)])
  for kernels in ('cpu', 'xla'):
    got, vjp = jax.vjp(lambda x, w: grouped_linear(x, w, jnp.array(sizes, jnp.int32), kernels), x, w)  # noqa: B023
    for a, b in zip((got, *vjp(dy)), (y, dx, dw), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_dispatch_and_combine_are_transposes():
  random = np.random.default_rng(0)
  order, inverse = sort_rows(random.integers(0, 4, 15))
  x, y = random.standard_normal((5, 3)).astype(np.float32), random.standard_normal((15, 3)).astype(np.float32)
  np.testing.assert_array_equal(dispatch(x, order, inverse), np.repeat(x, 3, 0)[order])
  want = np.zeros_like(x)
  np.add.at(want, np.asarray(order) // 3, y)
  np.testing.assert_allclose(combine(y, order, inverse, 5), want, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(jax.vjp(lambda x: dispatch(x, order, inverse), x)[1](y)[0],
                                combine(y, order, inverse, 5))
  np.testing.assert_array_equal(jax.vjp(lambda y: combine(y, order, inverse, 5), y)[1](x)[0],
                                dispatch(x, order, inverse))
