"""The schedule of a pipeline in numbers, for the plan and the model; without jax."""


def num_ticks(stages: int, pieces: int) -> int:
  """The last piece enters after all others, and goes through every stage. 1 without a pipeline."""
  return pieces + stages - 1


def bubble(stages: int, pieces: int) -> float:
  """The share of the ticks in which a stage has nothing to do (Huang et al. 2019, GPipe, section 2.3)."""
  return (stages - 1) / num_ticks(stages, pieces)
