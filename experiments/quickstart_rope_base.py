"""The quickstart with rotary positions of base 500,000 (Dubey et al. 2024, Llama 3, table 3) instead of 10,000."""
from experiments import quickstart


def get_config():
  config = quickstart.get_config()
  config.model.positions.base = 500_000.0
  return config
