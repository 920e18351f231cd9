"""The rounds in which tokens go to the devices of their experts (`token_exchange.py`): arithmetic, without jax."""
import math

MOST_ROUNDS = 8
LEAST_ROWS = 2_048  # of an expert in a round, so that adding its gradient to those before takes little beside it
SLACK = 0.5  # how much more than its share a device can send to each of the others in all rounds; 1 is a round
TILE = 16  # rows of bfloat16 in one tile of a TPU's memory


def balanced_rounds(copies: float, own_experts: float) -> int:
  """Rounds that it takes where all devices are sent about equally many copies.

  copies: of a device's tokens, one for each expert that a token chose.   own_experts: of a device.
  """
  return min(MOST_ROUNDS, max(1, int(copies / (LEAST_ROWS * own_experts))))


def room_in_round(copies: float, own_experts: float, devices: int) -> int:
  """How many copies a device can send to each of the devices in one round."""
  rounds = balanced_rounds(copies, own_experts)
  room = math.ceil(copies / devices * (rounds + SLACK) / rounds**2)
  return room if room < 8 * TILE else math.ceil(room / TILE) * TILE
