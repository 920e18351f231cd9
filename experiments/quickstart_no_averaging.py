"""The quickstart without averaging: SFT starts from the annealing's last checkpoint, not from the mean of the last."""
from typing import Any

from experiments import quickstart


def get_config():
  config: Any = quickstart.get_config()
  stages = {stage.name: stage for stage in config.stages}
  stages['sft'].init.stage = 'anneal'
  return config
