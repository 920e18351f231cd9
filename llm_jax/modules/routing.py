"""Routing: which experts a token is sent to, with which weights, and how evenly the experts are used.

Shapes: B batch, T time, E experts, X chosen experts.
"""
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.model import architecture as config
from llm_jax.modules.pipeline import from_pieces


@flax.struct.dataclass
class Routing:
  """Statistics of a router over a batch, without padding. Float32; scanned layers add an axis in front.

  loss_B: the weighted sum of the router's auxiliary losses, per sequence a mean over its tokens; differentiable. The
    balance loss of a SoftmaxRouter is in it only where it `balances_alone`.
  balance_B, z_B: the balance loss and the squared log-sum-exp of the logits, unweighted.
  load_E: how many tokens chose each expert, those that were dropped later included.
  score_E: the sum of the tokens' scores for each expert; differentiable.
  count: how many tokens there are.
  """
  loss_B: jax.Array
  balance_B: jax.Array
  z_B: jax.Array
  load_E: jax.Array
  score_E: jax.Array
  count: jax.Array


def merged(pieces: Routing) -> Routing:
  """The statistics of a batch from those of its pieces, [pieces, layers, ...], see `pipeline.py`."""
  of_rows = lambda array: from_pieces(jnp.moveaxis(array, 1, 2)).T
  return Routing(of_rows(pieces.loss_B), of_rows(pieces.balance_B), of_rows(pieces.z_B), pieces.load_E.sum(0),
                 pieces.score_E.sum(0), pieces.count.sum(0))


def route(router: config.Router, top_k: int, logits_BTE: jax.Array, bias_E: jax.Array | None, real_BT: jax.Array
          ) -> tuple[jax.Array, jax.Array, Routing]:
  """Chooses `top_k` experts for each token.

  Args:
    logits_BTE: float32.
    bias_E: of a SigmoidRouter, else None. It is added to the scores for the choice only, and gets no gradient.
    real_BT: bool, False for padding.

  Returns:
    expert_BTX: int32, the chosen experts.
    weight_BTX: float32, the factors of their outputs.
    routing: losses and loads.
  """
  match router:
    case config.SoftmaxRouter():
      score_BTE = jax.nn.softmax(logits_BTE)
      expert_BTX = jax.lax.top_k(jax.lax.stop_gradient(score_BTE), top_k)[1]
    case config.SigmoidRouter():
      assert bias_E is not None, 'a SigmoidRouter has a bias'
      score_BTE = jax.nn.sigmoid(logits_BTE)
      expert_BTX = _choose_in_groups(router, top_k, jax.lax.stop_gradient(score_BTE + bias_E))
  is_chosen_BTXE = one_hot(expert_BTX, logits_BTE.shape[-1])
  weight_BTX = jnp.where(is_chosen_BTXE, score_BTE[:, :, None], 0).sum(-1)
  sums_over_chosen = isinstance(router, config.SigmoidRouter) or router.weights_over == 'chosen'
  if sums_over_chosen:
    # 1e-20 as in DeepSeek-V3's code: it avoids 0 / 0 if all sigmoids underflow, and changes nothing else.
    weight_BTX = weight_BTX / (weight_BTX.sum(-1, keepdims=True) + 1e-20)

  chosen_BTE = is_chosen_BTXE.any(2) & real_BT[:, :, None]
  load_BE = chosen_BTE.sum(1, dtype=jnp.float32)
  count_B = real_BT.sum(1, dtype=jnp.float32)
  per_token_B = 1 / jnp.maximum(count_B, 1)
  z_B = jnp.where(real_BT, jax.nn.logsumexp(logits_BTE, axis=-1) ** 2, 0).sum(1) * per_token_B
  score_BE = jnp.where(real_BT[:, :, None], score_BTE, 0).sum(1)
  match router:
    case config.SoftmaxRouter():
      balance = balance_of_counts(load_BE.sum(0), score_BE.sum(0), count_B.sum())
      balance_B = jnp.broadcast_to(balance, count_B.shape)  # each microbatch has its own
      loss_B = router.z_weight * z_B
      if router.balances_alone:
        loss_B += router.balance_weight * balance_B
    case config.SigmoidRouter():
      weight_BTX *= router.scale
      balance_B = _sequence_balance(score_BTE, top_k, real_BT, per_token_B)
      loss_B = router.sequence_balance_weight * balance_B
  return expert_BTX, weight_BTX, Routing(loss_B, balance_B, z_B, load_BE.sum(0), score_BE.sum(0), count_B.sum())


def one_hot(expert_BTX: jax.Array, experts: int) -> jax.Array:
  """bool [B, T, X, E]; all false where the index is E or more."""
  return expert_BTX[..., None] == jnp.arange(experts)


def within_capacity(expert_BTX: jax.Array, experts: int, capacity: int) -> jax.Array:
  """bool [B, T, X]: whether a choice is among the first `capacity` choices of its expert in its sequence.

  Choices are counted in the order of the tokens, whatever their rank, so that no token depends on later tokens.
  """
  B, T, X = expert_BTX.shape
  is_chosen = one_hot(expert_BTX, experts).reshape(B, T * X, experts)
  place = jnp.cumsum(is_chosen, axis=1, dtype=jnp.int32)
  return jnp.where(is_chosen, place <= capacity, False).any(-1).reshape(B, T, X)


def _choose_in_groups(router, top_k, score_BTE):
  """The top_k experts within the best groups (DeepSeek-V3, section 2.1.2, node-limited routing)."""
  B, T, E = score_BTE.shape
  if router.top_groups < router.groups:
    grouped = score_BTE.reshape(B, T, router.groups, -1)
    group_score = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))[0].sum(-1)
    is_open = one_hot(jax.lax.top_k(group_score, router.top_groups)[1], router.groups).any(2)
    score_BTE = jnp.where(is_open[..., None], grouped, -jnp.inf).reshape(B, T, E)
  return jax.lax.top_k(score_BTE, top_k)[1]


def balance_of_counts(load_E: jax.Array, score_E: jax.Array, count: jax.Array) -> jax.Array:
  """E x the sum over experts of (share of tokens) x (mean probability), over a whole batch (Switch Transformers,
  equations 4 to 6; here the shares sum to top_k).

  Args:
    load_E, score_E, count: as `Routing` has them.
  """
  count = jnp.maximum(count, 1)
  return load_E.size * ((load_E / count) * (score_E / count)).sum()


def _sequence_balance(score_BTE, top_k, real_BT, per_token_B):
  """The balance loss of each sequence (DeepSeek-V3, equations 17 to 20). Its shares count the top_k experts by score
  alone, as in equation 18, not those chosen with the bias and the groups."""
  E = score_BTE.shape[-1]
  best_BTE = one_hot(jax.lax.top_k(jax.lax.stop_gradient(score_BTE), top_k)[1], E).any(2) & real_BT[..., None]
  share_BE = best_BTE.sum(1, dtype=jnp.float32) * (E / top_k) * per_token_B[:, None]
  part_BTE = score_BTE / (score_BTE.sum(-1, keepdims=True) + 1e-20)
  mean_BE = jnp.where(real_BT[..., None], part_BTE, 0).sum(1) * per_token_B[:, None]
  return (share_BE * mean_BE).sum(-1)
