"""AdamW and Muon against torch.optim and a NumPy Newton-Schulz iteration, on the parameters of real decoders."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from llm_jax import paths
from llm_jax.config import presets
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Block,
  LatentAttention,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SigmoidRouter,
)
from llm_jax.config.optimizers import AdamW, Muon
from llm_jax.config.schedules import Constant
from llm_jax.matrices import matrix_of
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.loss import Loss
from llm_jax.objectives.protocol import Objective
from llm_jax.optim.optimizers import decay_mask, make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step

GPT2 = presets.gpt2(d_model=16, num_layers=3, num_heads=2, vocab_size=33, max_length=8)
LLAMA = presets.llama(d_model=16, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=24, vocab_size=33)


def random_like(params, seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: jnp.asarray(scale * rng.normal(size=p.shape), jnp.float32), params)


def init(config):
  shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
  return random_like(shapes, seed=0)


def far(ours, theirs):
  """Distance of two tensors, relative to the second's norm."""
  return np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) / np.linalg.norm(theirs)


def test_decay_by_name():
  decayed = {path for path, decays in paths.leaves(decay_mask(init(GPT2))) if decays}
  names = ('query', 'key', 'value', 'out')
  weights = [f'attention/{name}' for name in names] + ['feed_forward/up', 'feed_forward/down']
  assert decayed == {'embedding/w', 'positions/w', *(f'blocks/block_0/{name}/w' for name in weights)}


# torch rounds 1 - rate x decay to float32, which for most rates moves every weight by 1e-8 a step, always the same way:
# either its float64 is the reference, or a rate and a decay for which that factor is exact.
@pytest.mark.parametrize('dtype, rate, weight_decay', [(torch.float64, 1e-2, 0.1), (torch.float32, 2**-7, 2**-3)])
def test_adamw_is_torchs(dtype, rate, weight_decay):
  """100 of our training steps, clipped on about half of them, against torch; the objective's gradient is the batch."""
  params, config = init(GPT2), AdamW(weight_decay=weight_decay)
  theirs = {path: torch.nn.Parameter(torch.tensor(np.asarray(p)).to(dtype)) for path, p in paths.leaves(params)}
  matrices = [p for path, p in theirs.items() if path.endswith('/w')]
  others = [p for path, p in theirs.items() if not path.endswith('/w')]
  adamw = torch.optim.AdamW([{'params': matrices, 'weight_decay': config.weight_decay},
                             {'params': others, 'weight_decay': 0.0}],
                            lr=rate, betas=(config.b1, config.b2), eps=config.eps)

  class GivenGradient(Objective):
    def __call__(self, params, frozen, batch, rng, statistics=None):
      return Loss(optax.tree.vdot(params, batch), jnp.float32(1), {})

  optimizer = make_optimizer(config, params)
  step = jax.jit(
    make_train_step(GivenGradient(None, None), optimizer, make_schedule(Constant(rate), 100), clip_norm=1.0)
  )
  state = TrainState.create(params, optimizer, ema=False)
  clipped = 0
  for i in range(100):
    grads = random_like(params, seed=i + 1, scale=10.0 ** -np.random.default_rng(i).uniform(1, 3))
    state, metrics = step(state, None, grads)
    clipped += metrics['grad_norm'] > 1
    for path, grad in paths.leaves(grads):
      theirs[path].grad = torch.tensor(np.asarray(grad)).to(dtype)
    torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
    adamw.step()
  assert 20 < clipped < 80
  for path, ours in paths.leaves(state.params):
    assert far(ours, theirs[path].detach().numpy()) <= 1e-6, path


def matrices(tree):
  """Each layer's matrices as Muon sees them, [inputs, outputs], by (path, layer)."""
  found = {}
  for path, stacked in paths.leaves(tree):
    if path.endswith('/w') and ('/attention/' in path or '/feed_forward/' in path):
      for layer, w in enumerate(np.asarray(stacked)):
        inputs = w.shape[0] * w.shape[1] if '/out/' in path else w.shape[0]
        found[path, layer] = w.reshape(inputs, -1)
  return found


def newton_schulz(m):
  """Jordan et al. 2024: five quintic steps, float64."""
  x = m / np.linalg.norm(m)
  for _ in range(5):
    gram = x @ x.T
    x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
  return x


def test_muon_is_numpys_layer_by_layer():
  params, config = init(LLAMA), Muon(matrix_scale=0.5)
  optimizer = make_optimizer(config, params)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  weights = {key: w.astype(np.float64) for key, w in matrices(params).items()}
  momenta = {key: 0.0 for key in weights}
  assert len(weights) == 3 * 7
  for t in range(1, 4):
    grads = random_like(params, seed=t)
    updates, state = update(grads, state, params)
    for key, grad in matrices(grads).items():
      beta = config.beta
      momenta[key] = beta * momenta[key] + (1 - beta) * grad.astype(np.float64)
      # Nesterov, with Adam's correction for the moment's empty start (Dozat 2016), as Optax has it
      look = beta * momenta[key] / (1 - beta**(t + 1)) + (1 - beta) * grad / (1 - beta**t)
      expected = -0.5 * (0.2 * np.sqrt(max(grad.shape)) * newton_schulz(look) + config.weight_decay * weights[key])
      assert far(matrices(updates)[key], expected) <= 2e-5, key


def test_muon_of_experts_latents_and_further_tokens():
  """Every expert's matrix by itself; heads of a latent are one matrix; routers and balance biases are AdamW's."""
  mixture = MixtureOfExperts(3, 2, GLU(10), SigmoidRouter(), shared=GLU(12))
  block = Block(LatentAttention(2, 6, 4, 2, 4, q_rank=5), mixture, RMSNorm())
  params = init(Architecture(33, 8, 2, pattern=(block,), positions=RoPE(), norm=RMSNorm(), tied_head=False,
                             multi_token=(block,)))
  grads, config = random_like(params, seed=1), Muon(weight_decay=0.0)
  optimizer = make_optimizer(config, params)
  updates = dict(paths.leaves(jax.jit(lambda g: optimizer.update(g, optimizer.init(params), params)[0])(grads)))
  scale, count = config.beta * (1 - config.beta) / (1 - config.beta**2) + 1, 0
  for path, grad in paths.leaves(grads):
    name, layers = path.split('/')[-2], ((0,), (1,)) if path.startswith('blocks') else ((),)
    if path.split('/')[-1] != 'w' or name in ('embedding', 'head', 'router'):
      continue
    if '/experts/' in path:
      layers = [(*layer, expert) for layer in layers for expert in range(3)]
    for layer in layers:
      g, u = (np.asarray(x[layer], np.float64) for x in (grad, updates[path]))
      shape = (-1, g.shape[-1]) if name == 'out' else (g.shape[0], -1)
      expected = -0.2 * np.sqrt(max(g.reshape(shape).shape)) * newton_schulz(scale * g.reshape(shape))
      assert far(u.reshape(shape), expected) <= 2e-5, path
      count += 1
  assert count == 3 * (7 + 3 + 3 * 3) + 1  # attention, shared, experts of three blocks; the projection
  adamw = make_optimizer(AdamW(weight_decay=0.0), params)
  want = dict(paths.leaves(adamw.update(grads, adamw.init(params), params)[0]))
  for path in ('blocks/block_0/feed_forward/router/w', 'blocks/block_0/feed_forward/balance/bias'):
    np.testing.assert_allclose(updates[path], want[path], rtol=1e-5)


def test_muon_of_gpt_oss():
  """Matrices of attention and experts are orthogonalised; sinks, biases and the router are AdamW's, and only weights
  decay."""
  params = init(presets.gpt_oss(32, 2, 4, 2, 24, num_experts=3, top_k=2, vocab_size=33))
  of_muon = {path for path, _ in paths.leaves(params) if matrix_of(path)}
  decayed = {path for path, each in paths.leaves(decay_mask(params)) if each}
  blocks = {f'blocks/block_{i}/{part}/w' for i in (0, 1) for part in (
    'attention/query', 'attention/key', 'attention/value', 'attention/out', 'feed_forward/experts/gate',
    'feed_forward/experts/up', 'feed_forward/experts/down')}
  assert of_muon == blocks
  assert decayed == blocks | {f'blocks/block_{i}/feed_forward/router/w' for i in (0, 1)} | {'embedding/w', 'head/w'}
  assert 'blocks/block_0/attention/sinks/logit' in dict(paths.leaves(params))


def test_muons_first_step_is_torchs():
  """Scale, decay and direction, to the bfloat16 of torch's iteration."""
  params, config, rate = init(LLAMA), Muon(), 0.02
  grads = random_like(params, seed=1)
  optimizer = make_optimizer(config, params)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  theirs = {key: torch.nn.Parameter(torch.tensor(w)) for key, w in matrices(params).items()}
  for key, grad in matrices(grads).items():
    theirs[key].grad = torch.tensor(grad)
  torch.optim.Muon(theirs.values(), lr=rate, weight_decay=config.weight_decay, momentum=config.beta,
                   adjust_lr_fn='match_rms_adamw').step()
  for key, w in matrices(params).items():
    assert far(rate * matrices(updates)[key], theirs[key].detach().numpy() - w) <= 2e-2, key


def test_muon_leaves_the_rest_to_adamw():
  params = init(GPT2)
  grads, updates = random_like(params, seed=1), {}
  for config in (AdamW(), Muon()):
    optimizer = make_optimizer(config, params)
    updates[type(config)] = dict(paths.leaves(optimizer.update(grads, optimizer.init(params), params)[0]))
  for path, update in updates[Muon].items():
    same = bool((update == updates[AdamW][path]).all())
    assert same == (path not in {p for p, _ in matrices(params)}), path


@pytest.mark.parametrize('config', [AdamW(weight_decay=0.0), Muon(weight_decay=0.0)])
def test_updates_have_adamws_size(config):
  """One learning rate serves both: on noisy gradients a matrix moves about as far by Muon as by AdamW."""
  params = init(LLAMA)
  optimizer = make_optimizer(config, params)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for t in range(30):
    updates, state = update(random_like(params, seed=t), state, params)
  for key, u in matrices(updates).items():
    assert 0.1 < np.sqrt(np.mean(u**2)) < 0.4, key
