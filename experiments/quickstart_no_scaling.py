"""The quickstart whose long stage learns four times the context with the positions of the short one, not stretched."""
from typing import Any

from experiments import quickstart


def get_config():
  config: Any = quickstart.get_config()
  stages = {stage.name: stage for stage in config.stages}
  stages['long'].positions.scaling = None
  return config
