"""Whether a stage's adapters fit the run's model."""
import math

from llm_jax.config.adapters import LoRA
from llm_jax.config.errors import located, require
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.run import Run
from llm_jax.matrices import matrix_of, split_shape
from llm_jax.modules.low_rank import targets_of
from llm_jax.modules.parameters import parameter_shapes


def check_adapters(run: Run) -> None:
  """Refuses adapters that nothing would get, or that are wider than a matrix. No array is made.

  Raises:
    ConfigError: naming the stage's field.
  """
  for i, stage in enumerate(run.stages):
    if stage.adapters is not None:
      with located(f'stages[{i}].adapters'):
        check_fit(run.model, stage.adapters)


def check_fit(model: Architecture, lora: LoRA) -> None:
  shapes = parameter_shapes(model)
  matrices = [path for path in shapes if matrix_of(path) is not None]
  targets = targets_of(shapes, lora)
  names = sorted({path.split('/', 2 if path.startswith('blocks/') else 1)[-1] for path in matrices})
  require(bool(targets), 'targets', lora.targets, f'is found in the path of no matrix: they are {", ".join(names)}')
  for path in targets:
    matrix = matrix_of(path)
    assert matrix is not None
    _, inputs, outputs = split_shape(shapes[path], matrix)
    width = min(math.prod(inputs), math.prod(outputs))
    require(lora.rank <= width, 'rank', lora.rank, f'{path} is no wider than {width}: use at most that')
  experts = [path for path in targets if '/experts/' in path]
  if experts:
    require(not lora.dropout, 'dropout', lora.dropout,
            f'adapters of experts ({experts[0]}) have none: use 0, or targets without experts')
    require(not lora.dora, 'dora', lora.dora, f'is not for experts ({experts[0]}): use targets without experts')
