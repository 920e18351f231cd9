"""A decoder's architecture as a picture (SVG), drawn from its configuration.

python -m llm_jax.report.model_diagram llama3_8b > llama3_8b.svg
"""
import itertools
import sys
from collections.abc import Callable, Sequence

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  AnyAttention,
  AnyBlock,
  Architecture,
  Attention,
  Block,
  ClampedGLU,
  Dense,
  FeedForward,
  LatentAttention,
  LayerNorm,
  LearnedPositions,
  LinearScaling,
  Llama3Scaling,
  LongRoPEScaling,
  MixtureOfExperts,
  NoPositions,
  Norm,
  NTKScaling,
  OutputNormBlock,
  ParallelBlock,
  Positions,
  PostNormBlock,
  RMSNorm,
  RoPE,
  SandwichBlock,
  Scaling,
  SigmoidRouter,
  SinusoidalPositions,
  SoftmaxRouter,
  YaRNScaling,
  ZeroCenteredRMSNorm,
)
from llm_jax.config.model.attention import FullWidthNorm, PerHeadNorm
from llm_jax.config.model.count import count_active_parameters, count_parameters
from llm_jax.report.canvas import GAP, Canvas

ACTIVATIONS = {'gelu_tanh': 'GELU, tanh form', 'gelu': 'GELU', 'gelu_sigmoid': 'GELU, sigmoid form', 'silu': 'SiLU',
               'relu': 'ReLU'}
GATED = {'gelu_tanh': 'GeGLU', 'gelu': 'GeGLU', 'gelu_sigmoid': 'GeGLU', 'silu': 'SwiGLU', 'relu': 'ReGLU'}


def draw(architecture: Architecture, title: str = '') -> str:
  """The decoder from its tokens (bottom) to its logits (top), as the text of an SVG file.

  It is legible on light and on dark backgrounds, and has no scripts, links or fonts.
  """
  c, canvas = architecture, Canvas()
  rotary = isinstance(c.positions, RoPE)
  canvas.label('tokens')
  canvas.arrow()
  scale = '' if c.embedding_scale == 1 else f' · scaled by {c.embedding_scale:.4g}'
  canvas.box('table', 'Embedding', [f'{c.vocab_size:,} tokens of width {c.d_model:,}{scale}'])
  canvas.positions(*_positions(c.positions), added=not rotary)
  for group, repeats in [*_runs(c.prefix), (c.pattern, c.repeats)]:
    if repeats:
      bottom = canvas.y
      for block in group:
        _draw_block(canvas, block, c)
      canvas.bracket(bottom, f'× {repeats}')
  if c.norm is not None:
    canvas.arrow()
    canvas.norm(_norm(c.norm))
  trunk = canvas.branch() if c.multi_token else None
  canvas.arrow()
  cap = '' if c.logit_soft_cap is None else f' · soft cap {c.logit_soft_cap:g}'
  head = f'{c.d_model:,} → {c.vocab_size:,}{" · tied to the embedding" if c.tied_head else ""}{cap}'
  canvas.box('table', 'Head', [head])
  canvas.arrow()
  canvas.label('logits of the next token')
  start = trunk
  for depth, block in enumerate(c.multi_token, 1):
    assert start is not None
    start = _draw_mtp(canvas, block, c.d_model, start, depth)
  return canvas.svg(title, _summary(c))


def _summary(c: Architecture) -> str:
  total, active = count_parameters(c), count_active_parameters(c)
  parameters = f'{_short(total)} parameters' + ('' if active == total else f', {_short(active)} for a token')
  context = c.positions.max_length if isinstance(c.positions, LearnedPositions | RoPE) else None
  return ' · '.join([parameters, f'{c.num_layers} layers', f'width {c.d_model:,}',
                     *([f'context {context:,}'] if context else [])])


def _short(count: int) -> str:
  """Three digits and a unit: 8030261248 becomes 8.03B."""
  for unit, letter in ((10**9, 'B'), (10**6, 'M'), (10**3, 'K')):
    if count >= 0.9995 * unit:  # 999,885,952 is 1.00B, not 1000M
      whole_digits = len(str(count // unit))
      return f'{count / unit:.{max(0, 3 - whole_digits)}f}{letter}'
  return str(count)


def _runs(prefix: tuple[AnyBlock, ...]) -> list[tuple[tuple[AnyBlock], int]]:
  """Each run of equal blocks, as one block and the length of the run."""
  return [((block,), len(list(same))) for block, same in itertools.groupby(prefix)]


def _norm(norm: Norm) -> str:
  match norm:
    case LayerNorm():
      return 'LayerNorm'
    case ZeroCenteredRMSNorm():
      return 'RMSNorm, times 1 + scale'
    case RMSNorm():
      return 'RMSNorm'


def _positions(positions: Positions) -> tuple[str, list[str]]:
  match positions:
    case LearnedPositions():
      return 'Learned positions', [f'{positions.max_length:,} vectors']
    case SinusoidalPositions():
      return 'Sinusoidal positions', [f'base {positions.base:,.0f}']
    case RoPE():
      return 'Rotary positions', [f'theta {positions.theta:,.0f}', *_scaling(positions.scaling)]


def _scaling(scaling: Scaling | None) -> list[str]:
  match scaling:
    case None:
      return []
    case LinearScaling(factor=factor):
      return [f'linear scaling × {factor:g}']
    case NTKScaling(factor=factor):
      return [f'NTK-aware scaling × {factor:g}']
    case Llama3Scaling(factor=factor):
      return [f'Llama 3 scaling × {factor:g}']
    case YaRNScaling(factor=factor):
      return [f'YaRN scaling × {factor:g}']
    case LongRoPEScaling(factor=factor, original_length=length):
      return [f'LongRoPE × {factor:g}, other factors beyond {length:,}']


# ---------------------------------------------------------------------------------------------- a block
def _draw_block(canvas: Canvas, block: AnyBlock, c: Architecture) -> None:
  """The two halves inside a frame, each with its norms where the block's type has them."""
  bottom = canvas.y
  canvas.line(GAP / 2)
  halves = (lambda: _draw_attention(canvas, block.attention, c),
            lambda: _draw_feed_forward(canvas, block.feed_forward, c.d_model))
  if isinstance(block, ParallelBlock):
    _draw_parallel(canvas, _norm(block.norm), halves)
    canvas.frame(bottom)
    return
  for draw_half in halves:
    split = canvas.residual()
    if isinstance(block, Block | SandwichBlock):
      canvas.norm(_norm(block.norm))
      canvas.arrow()
    draw_half()
    canvas.arrow()
    if isinstance(block, SandwichBlock | OutputNormBlock):
      canvas.norm(_norm(block.norm))
      canvas.arrow()
    canvas.plus(split)
    if isinstance(block, PostNormBlock):
      canvas.arrow()
      canvas.norm(_norm(block.norm))
    canvas.line(GAP)
  canvas.frame(bottom)


def _draw_parallel(canvas: Canvas, norm: str, halves: Sequence[Callable[[], None]]) -> None:
  """Halves that read the same stream: each branches off where the first does, and their sums stand above both."""
  split = canvas.residual()
  outputs: list[float] = []
  for number, draw_half in enumerate(halves):
    if number:
      outputs.append(canvas.beside())
    canvas.norm(norm)
    canvas.arrow()
    draw_half()
  canvas.arrow()
  canvas.plus(split, outputs)
  canvas.line(GAP)


def _sharing(heads: int, groups: int) -> str:
  """The name of an attention whose query heads share the keys and values of so many groups."""
  if groups == heads:
    return 'Multi-head'
  return 'Multi-query' if groups == 1 else 'Grouped-query'


def _attention(attention: AnyAttention, d_model: int) -> tuple[str, list[str]]:
  """Title and lines."""
  match attention:
    case Attention(num_heads=heads, kv_heads=groups):
      title = f'{_sharing(heads, groups)} attention'
      shared = '' if groups == heads else f' · {groups} for keys and values'
      lines = [f'{heads} heads of {attention.head_size(d_model)}{shared}']
      more = []
      if attention.window is not None:
        more.append(f'window of {attention.window:,} tokens')
      if attention.soft_cap is not None:
        more.append(f'soft cap {attention.soft_cap:g}')
      if attention.bias or attention.has_out_bias:
        more.append(_biases(attention))
    case LatentAttention(num_heads=heads, nope_dim=nope, rope_dim=rope, v_dim=v):
      title = 'Multi-head latent attention'
      lines = [f'{heads} heads of {nope} + {rope} rotary · values of {v}']
      more = [f'keys and values from {attention.kv_rank:,}']
      if attention.q_rank is not None:
        more.append(f'queries from {attention.q_rank:,}')
  in_one_line = ' · '.join(lines + more)
  if len(in_one_line) < 44:
    lines = [in_one_line]
  else:
    lines.append(' · '.join(more))
  lines += _sinks(attention) + _qk_norm(attention) + _own_positions(attention) + _turned(attention, d_model)
  return title, lines


def _biases(attention: Attention) -> str:
  if attention.bias and attention.has_out_bias:
    return 'biases'
  return 'biases of queries, keys and values' if attention.bias else 'a bias of the output'


def _own_positions(attention: AnyAttention) -> list[str]:
  """What turns queries and keys where it is not what the model says."""
  match attention:
    case Attention(positions=RoPE() as rope):
      return [' · '.join([f'rotary theta {rope.theta:,.0f}', *_scaling(rope.scaling)])]
    case Attention(positions=NoPositions()):
      return ['no positions']
  return []


def _turned(attention: AnyAttention, d_model: int) -> list[str]:
  """How much of a head rotary positions turn, where it is a part."""
  if not isinstance(attention, Attention) or attention.rotary_dim is None:
    return []
  return [f'{attention.rotary_dim} of the {attention.head_size(d_model)} numbers of a head turned']


def _sinks(attention: AnyAttention) -> list[str]:
  return ['a sink in each head'] if isinstance(attention, Attention) and attention.sinks else []


def _qk_norm(attention: AnyAttention) -> list[str]:
  match attention:
    case Attention(qk_norm=PerHeadNorm()):
      return ['queries and keys normalised per head']
    case Attention(qk_norm=FullWidthNorm()):
      return ['queries and keys normalised over all heads']
  return []


def _draw_attention(canvas: Canvas, attention: AnyAttention, c: Architecture) -> None:
  window = attention.window if isinstance(attention, Attention) else None
  canvas.box('attention', *_attention(attention, c.d_model), icon='band' if window else 'causal')
  latent = isinstance(attention, LatentAttention)
  canvas.heads(attention.num_heads, 0 if latent else attention.kv_heads)
  if c.rope_of(attention) is not None:
    canvas.rotate()


def _dense(feed_forward: Dense, d_model: int) -> tuple[str, str]:
  """Title and sizes."""
  width = feed_forward.width(d_model)
  gated = f'{d_model:,} → gate and up of {width:,} → {d_model:,}'
  match feed_forward:
    case MLP(activation=activation):
      return f'Feed-forward, {ACTIVATIONS[activation]}', f'{d_model:,} → {width:,} → {d_model:,}'
    case GLU(activation=activation):
      return GATED[activation], gated
    case ClampedGLU(limit=limit):
      return f'SwiGLU, clamped at {limit:g}', gated


def _feed_forward(feed_forward: FeedForward, d_model: int) -> tuple[str, list[str]]:
  """Title and lines."""
  if isinstance(feed_forward, MixtureOfExperts):
    router = 'sigmoid' if isinstance(feed_forward.router, SigmoidRouter) else 'softmax'
    name, sizes = _dense(feed_forward.expert, d_model)
    lines = [f'{feed_forward.top_k} of {feed_forward.num_experts} experts by a {router} router']
    lines += [f'{name}: {sizes}'] if len(name + sizes) < 46 else [name, sizes]
    if isinstance(feed_forward.router, SigmoidRouter) and feed_forward.router.groups > 1:
      lines.insert(1, f'from {feed_forward.router.top_groups} of {feed_forward.router.groups} groups, '
                      'balanced by a bias')
    if feed_forward.shared is not None:
      lines.append(f'and one for all tokens of {feed_forward.shared.width(d_model):,}')
    biased = ['router'] if isinstance(feed_forward.router, SoftmaxRouter) and feed_forward.router.bias else []
    biased += ['experts'] if feed_forward.expert.bias else []
    if biased:
      lines.append(f'biases of {" and ".join(biased)}')
    return 'Mixture of experts', lines
  title, sizes = _dense(feed_forward, d_model)
  return title, [sizes + (' · biases' if feed_forward.bias else '')]


def _draw_feed_forward(canvas: Canvas, feed_forward: FeedForward, d_model: int) -> None:
  title, lines = _feed_forward(feed_forward, d_model)
  match feed_forward:
    case MixtureOfExperts(num_experts=experts, top_k=top_k, router=router):
      groups = (router.groups, router.top_groups) if isinstance(router, SigmoidRouter) else (1, 1)
      canvas.box('experts', title, lines, icon='router', below=canvas.experts_height(experts))
      canvas.experts(experts, top_k, *groups)
    case _:
      canvas.box('dense', title, lines, icon='mlp' if isinstance(feed_forward, MLP) else 'gated')


def _draw_mtp(canvas: Canvas, block: AnyBlock, d_model: int, start: tuple[float, float], depth: int
                        ) -> tuple[float, float]:
  """A depth of multi-token prediction (DeepSeek-V3, figure 3), beside the main model.

  start: where its input leaves the main model, or the depth before.   Returns: where the next depth starts.
  """
  kind = 'experts' if isinstance(block.feed_forward, MixtureOfExperts) else 'dense'
  attention, _ = _attention(block.attention, d_model)
  feed_forward, _ = _feed_forward(block.feed_forward, d_model)
  body = [('norm', f'{_norm(block.norm)} of each'), ('table', f'projection, {2 * d_model:,} → {d_model:,}'),
          ('attention', attention), (kind, feed_forward)]
  head = [('norm', _norm(block.norm)), ('table', 'the same head')]
  return canvas.panel(start, f'embedding of token t + {depth}', body, head, f'logits of token t + {depth + 1}')


def main(arguments: list[str]) -> None:
  """Prints the picture of a named preset; wrong input is one line and exit code 2."""
  if len(arguments) != 1 or arguments[0] not in presets.NAMES:
    print(ConfigError('preset', ' '.join(arguments), f'give one of {", ".join(presets.NAMES)}'), file=sys.stderr)
    raise SystemExit(2)
  print(draw(getattr(presets, arguments[0])(), arguments[0]), end='')


if __name__ == '__main__':
  main(sys.argv[1:])
