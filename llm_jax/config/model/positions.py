"""The kinds of positions, and the scalings of rotary positions to longer sequences."""
import dataclasses
import math

from llm_jax.config.errors import require, require_sizes
from llm_jax.config.fields import Tokens


@dataclasses.dataclass(frozen=True)
class LearnedPositions:
  """A table of vectors added to the embeddings (GPT-1, GPT-2, GPT-3).

  max_length: length of the table, and of the longest sequence.
  """
  max_length: Tokens

  def __post_init__(self):
    require(self.max_length > 0, 'max_length', self.max_length, 'use a positive length')


@dataclasses.dataclass(frozen=True)
class SinusoidalPositions:
  """Sines and cosines of geometric wavelengths added to the embeddings (Vaswani et al. 2017, section 3.5).

  base: the largest wavelength is about 2 pi base tokens.
  """
  base: float = 10_000.0

  def __post_init__(self):
    require(self.base > 1, 'base', self.base, 'use a base above 1, such as 10000')


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """Positions divided by `factor` (Chen et al. 2023, Position Interpolation).

  factor: how many times longer sequences become.
  """
  factor: float

  def __post_init__(self):
    _check_factor(self.factor)


@dataclasses.dataclass(frozen=True)
class NTKScaling:
  """theta x factor^(K / (K - 2)) for head size K: low frequencies stretched by `factor`, the highest one not at all
  ("NTK-aware", Peng et al. 2023, YaRN, section 3.1).

  factor: how many times longer sequences become.
  """
  factor: float

  def __post_init__(self):
    _check_factor(self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Wavelengths beyond original_length / low_frequency_factor stretched by `factor`, those below original_length /
  high_frequency_factor kept, between them a blend (Llama 3.1, Dubey et al. 2024, and its code).

  factor: how many times longer sequences become.
  low_frequency_factor: longer wavelengths than original_length divided by it are stretched in full.
  high_frequency_factor: shorter wavelengths than original_length divided by it are kept.
  original_length: sequence length that the model was trained on before.
  """
  factor: float = 8.0
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_length: Tokens = 8_192

  def __post_init__(self):
    _check_factor(self.factor)
    require(self.original_length > 0, 'original_length', self.original_length, 'use a positive length')
    require(0 < self.low_frequency_factor < self.high_frequency_factor, 'high_frequency_factor',
            self.high_frequency_factor, f'use more than low_frequency_factor={self.low_frequency_factor} > 0')


@dataclasses.dataclass(frozen=True)
class YaRNScaling:
  """Dimensions that turn less than `beta_slow` times in original_length stretched by `factor`, those that turn more
  than `beta_fast` times kept, a ramp between (Peng et al. 2023, YaRN, sections 3.2 and 3.3).

  factor: how many times longer sequences become.
  original_length: sequence length that the model was trained on before.
  beta_fast: dimensions with more turns are kept.
  beta_slow: dimensions with fewer turns are stretched in full.
  attention_factor: what cosines and sines are multiplied by; None means 0.1 ln(factor) + 1 (their equation 22).
  truncate: whether the ends of the ramp are rounded to whole dimensions, as in their code (gpt-oss rounds none).
  """
  factor: float
  original_length: Tokens
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  truncate: bool = True

  def __post_init__(self):
    _check_factor(self.factor)
    require(self.original_length > 0, 'original_length', self.original_length, 'use a positive length')
    require(0 < self.beta_slow < self.beta_fast, 'beta_fast', self.beta_fast,
            f'use more than beta_slow={self.beta_slow} > 0')
    require_sizes(self, 'attention_factor')

  @property
  def magnitude(self) -> float:
    if self.attention_factor is not None:
      return self.attention_factor
    return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class LongRoPEScaling:
  """Each frequency divided by a factor of its own, which a search found: by one list in sequences of at most
  original_length, by another in longer ones (Ding et al. 2024, LongRoPE, section 3; Phi-3, Abdin et al. 2024).

  short_factors: for sequences of at most original_length, one factor for each pair of numbers that is turned.
  long_factors: for longer sequences, as many.
  factor: how many times longer sequences become.
  original_length: sequence length that the model was trained on before.
  attention_factor: what cosines and sines are multiplied by; None means sqrt(1 + ln(factor) / ln(original_length)).

  So the length of a whole sequence decides how its first tokens are turned. In a row of several documents each goes by
  its own length, its last position + 1; with a cache its `length` decides, and `generate` reads a text anew where it
  grows beyond original_length.
  """
  short_factors: tuple[float, ...]
  long_factors: tuple[float, ...]
  factor: float
  original_length: Tokens
  attention_factor: float | None = None

  def __post_init__(self):
    _check_factor(self.factor)
    require(self.original_length > 1, 'original_length', self.original_length, 'use a length of 2 or more')
    require_sizes(self, 'attention_factor')
    require(len(self.short_factors) == len(self.long_factors), 'long_factors', self.long_factors,
            f'there are {len(self.long_factors)}: give as many as short_factors, {len(self.short_factors)}')
    for field in ('short_factors', 'long_factors'):
      require(all(factor > 0 for factor in getattr(self, field)), field, getattr(self, field), 'use positive numbers')

  @property
  def magnitude(self) -> float:
    if self.attention_factor is not None:
      return self.attention_factor
    return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))


def _check_factor(factor: float) -> None:
  require(factor >= 1, 'factor', factor, 'use 1 or more: how many times longer sequences become')


Scaling = LinearScaling | NTKScaling | Llama3Scaling | YaRNScaling | LongRoPEScaling


@dataclasses.dataclass(frozen=True)
class RoPE:
  """Rotary positions (Su et al. 2021), half-split layout as in Hugging Face; phases are float32.

  theta: the largest wavelength is about 2 pi theta tokens (`rope_theta` of transformers).
  scaling: how the rotation is stretched to sequences longer than those trained on, or None.
  max_length: the longest sequence that the model is meant for. It goes into exported files; nothing is computed from
    it.
  """
  theta: float = 10_000.0
  scaling: Scaling | None = None
  max_length: Tokens | None = None

  def __post_init__(self):
    require(self.theta > 1, 'theta', self.theta, 'use a number above 1, such as 10000')
    require(self.max_length is None or self.max_length > 0, 'max_length', self.max_length, 'use a positive length')

  @property
  def switch_length(self) -> int | None:
    """The longest sequence that is turned otherwise than longer ones are; None where all are turned alike."""
    scaling = self.scaling
    if not isinstance(scaling, LongRoPEScaling) or scaling.short_factors == scaling.long_factors:
      return None
    return scaling.original_length

  def at_length(self, length: int) -> 'RoPE':
    """The rotation of a sequence of so many tokens, for sequences of any length."""
    if self.switch_length is None:
      return self
    assert isinstance(self.scaling, LongRoPEScaling)
    is_long = length > self.switch_length
    factors = self.scaling.long_factors if is_long else self.scaling.short_factors
    scaling = dataclasses.replace(self.scaling, short_factors=factors, long_factors=factors)
    return dataclasses.replace(self, scaling=scaling)


@dataclasses.dataclass(frozen=True)
class NoPositions:
  """Queries and keys of a layer are not turned: it sees the order of tokens only by the causal mask (NoPE, Kazemnejad
  et al. 2023; each fourth layer of SmolLM3)."""


Positions = LearnedPositions | SinusoidalPositions | RoPE
