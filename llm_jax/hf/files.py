"""Folders of safetensors with a `config.json`, as `transformers` writes and reads them."""
import json
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 a NumPy dtype)
import numpy as np
import safetensors
import safetensors.numpy

from llm_jax.config.architecture import Architecture
from llm_jax.config.errors import ConfigError, require
from llm_jax.hf.configs import config_from_hf, config_to_hf
from llm_jax.hf.weights import params_from_state_dict, state_dict_from_params

INDEX, SINGLE = 'model.safetensors.index.json', 'model.safetensors'


def load_pretrained(directory: str) -> tuple[Architecture, dict[str, Any]]:
  """Reads a Hugging Face folder.

  Returns:
    The architecture, and its parameters as a nested dict of float32 arrays in host memory.

  Raises:
    ConfigError: naming the file, entry or tensors that are missing, unsupported or wrong. Pickled weights are refused.
  """
  folder = pathlib.Path(directory)
  config = config_from_hf(_read_json(folder / 'config.json'))
  tensors: dict[str, np.ndarray] = {}
  for file in _weight_files(folder):
    try:
      loaded = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
      raise ConfigError(str(file), type(error).__name__, f'not a readable safetensors file: {error}') from error
    twice = sorted(tensors.keys() & loaded.keys())
    require(not twice, str(file), twice, 'these tensors are in another file too')
    tensors |= loaded
  try:
    return config, params_from_state_dict(config, tensors)
  except ConfigError as error:
    raise ConfigError(str(folder), error.value, error.mend) from error


def save_pretrained(directory: str, config: Architecture, params: Any, *, dtype: str = 'float32',
                    context: int = 2_048) -> None:
  """Writes `config.json` and `model.safetensors`, loadable by `transformers` and by `load_pretrained`.

  Args:
    dtype: of the tensors, 'float32', 'bfloat16' or 'float16'.
    context: see `config_to_hf`.

  Raises:
    ConfigError: where no family of `transformers` expresses the architecture, before anything is written.
  """
  require(dtype in ('float32', 'bfloat16', 'float16'), 'dtype', dtype, "use 'float32', 'bfloat16' or 'float16'")
  values = config_to_hf(config, context) | {'dtype': dtype}
  tensors = {name: tensor.astype(dtype) for name, tensor in state_dict_from_params(config, params).items()}
  folder = pathlib.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(tensors, folder / SINGLE, metadata={'format': 'pt'})
  (folder / 'config.json').write_text(json.dumps(values, indent=2) + '\n')


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  if (folder / INDEX).exists():
    weight_map = _read_json(folder / INDEX).get('weight_map')
    require(isinstance(weight_map, dict), str(folder / INDEX), weight_map, 'weight_map must name a file per tensor')
    names = sorted(set(weight_map.values()))
    for name in names:
      require(name == pathlib.PurePath(name).name and name.endswith('.safetensors'), str(folder / INDEX), name,
              'weight_map may only name .safetensors files of the same folder')
      require((folder / name).is_file(), str(folder / name), None, 'the index names this file, and it is missing')
    return [folder / name for name in names]
  if (folder / SINGLE).exists():
    return [folder / SINGLE]
  pickled = sorted(path.name for pattern in ('*.bin', '*.pt', '*.pth', '*.ckpt') for path in folder.glob(pattern))
  require(not pickled, str(folder), pickled, 'pickled weights can run code: convert them to safetensors')
  raise ConfigError(str(folder), None, f'holds neither {SINGLE} nor {INDEX}')


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  try:
    values = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ConfigError(str(file), type(error).__name__, f'not a readable JSON file: {error}') from error
  require(isinstance(values, dict), str(file), values, 'must hold a JSON object')
  return values
