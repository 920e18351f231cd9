"""Folders of safetensors with a `config.json`, as `transformers` writes and reads them."""
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.hub_names import is_hub_name
from llm_jax.config.model.architecture import Architecture, RoPE
from llm_jax.hf.configs import config_from_hf, config_to_hf, difference, generation_config, resolved
from llm_jax.hf.families import family_of
from llm_jax.hf.family import Family
from llm_jax.hf.finite import cast_checked
from llm_jax.hf.mxfp4 import UnpackedTensors, is_mxfp4
from llm_jax.hf.placement import Store
from llm_jax.hf.tensor_file import TensorFiles, write_file
from llm_jax.hf.vocabulary import ResizedTensors
from llm_jax.hf.weights import (
  FLOATS,
  check_state_dict,
  described_tensors,
  params_from_state_dict,
  tensors_from_params,
)
from llm_jax.runtime.hub import model_folder

INDEX, SINGLE = 'model.safetensors.index.json', 'model.safetensors'
PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl')
Files = TensorFiles | UnpackedTensors | ResizedTensors
Progress = Callable[[int, int], None]  # called with the bytes that are done, and the bytes of all


def load_pretrained(directory: str | os.PathLike, mesh: jax.sharding.Mesh | None = None, dtype: Any = 'float32',
                    config: Architecture | None = None, progress: Progress | None = None, *,
                    resize_vocabulary: bool = False, store: Store | None = None, revision: str | None = None
                    ) -> tuple[Architecture, dict[str, Any]]:
  """Reads a Hugging Face folder, tensor by tensor.

  Args:
    directory: the folder, or the name of a model on the hub, which is fetched into the hub's cache.
    revision: branch, tag or commit on the hub; None: the newest commit.
    mesh: None gives NumPy arrays; else every parameter is made on its shards, and host memory never holds more than one
      layer of one parameter, and the tensors of the files that it is made of.
    dtype: of the parameters: 'float32', 'bfloat16' or 'float16', or the NumPy types. What `transformers` keeps in
      float32 is float32 whatever it says.
    config: the architecture to read the folder as. It may differ from the folder's in the prefix and pattern, the
      dropout and the scaling of rotary positions, and in nothing else.
    resize_vocabulary: whether `config` may have another vocabulary; see `hf.resize_vocabulary`.
    store: makes of a parameter what is kept of it, such as a quantised weight; only with a mesh.

  Returns:
    The architecture, and its parameters as a nested dict.

  Raises:
    ConfigError: names the file, entry or tensors that are missing, unsupported or wrong. Pickled weights, code in the
      folder, and links to files outside of the folder are refused.
    FileError: names a file that was cut short while it was read.
  """
  require(mesh is None or isinstance(mesh, jax.sharding.Mesh), 'mesh', mesh, 'give a mesh of devices, or None')
  folder, dtype = model_folder(directory, revision), float_type(dtype)
  found, tensors = _open(folder, config, resize_vocabulary)
  params = read_params(folder, config or found, tensors, mesh, dtype, progress, store, family_of(found))
  return config or found, params


def float_type(dtype: Any) -> np.dtype:
  """The dtype of a name or a type, which must be a supported floating-point type."""
  try:
    found = np.dtype(dtype)
  except TypeError:
    found = None
  if found is None or found not in FLOATS:
    raise ConfigError('dtype', dtype, "use 'float32', 'bfloat16' or 'float16'")
  return found


def read_config(directory: str | os.PathLike, revision: str | None = None) -> Architecture:
  """The architecture of a Hugging Face folder, for the `model` of an experiment that begins with `HuggingFace(folder)`.

  Args:
    directory: the folder, or the name of a model on the hub.
    revision: branch, tag or commit on the hub; None: the newest commit.

  No weight is read, and none fetched where that can be avoided. Raises as `load_pretrained`.
  """
  if not is_hub_name(os.fspath(directory)):
    return _open(pathlib.Path(directory), None)[0]
  folder = model_folder(directory, revision, weights=False)
  found = config_from_hf(read_json(folder, 'config.json'))
  # Only the weights say whether it has blocks for further tokens.
  return _open(model_folder(directory, revision), None)[0] if found.multi_token else found


def check_pretrained(directory: str | os.PathLike, config: Architecture, *, resize_vocabulary: bool = False) -> None:
  """Refuses, as `load_pretrained` does, a folder that cannot be opened, or that holds another model or a part of one.

  No weight is read, except for those that must equal others.
  """
  folder = pathlib.Path(directory)
  found, tensors = _open(folder, config, resize_vocabulary)
  with _naming(folder):
    check_state_dict(config, tensors, family_of(found))


def _open(folder: pathlib.Path, config: Architecture | None, resize: bool = False
          ) -> tuple[Architecture, Files]:
  """The architecture and the tensors of a folder. The architecture must be `config`, if that is given.

  resize: whether the vocabulary may be another one than that of `config`, which the tensors then have.
  """
  is_adapter = (folder / 'adapter_config.json').is_file()
  if is_adapter and not any((folder / name).exists() for name in (SINGLE, INDEX)):
    raise ConfigError(str(folder), 'adapter_config.json', 'an adapter of PEFT without its model: merge it into the '
                      'model first, PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(new)')
  values = read_json(folder, 'config.json')
  require('stages' not in values, str(folder), 'a run',
          f'it is of launch.train, not of Hugging Face: use launch.convert --checkpoint={folder}')
  found = config_from_hf(values)
  tensors: Files = TensorFiles(_weight_files(folder))
  if is_mxfp4(values):
    tensors = UnpackedTensors(tensors)
  has_multi_token = any(name.endswith('.eh_proj.weight') for name in tensors)
  if not has_multi_token:  # `transformers` does not write these blocks
    found = dataclasses.replace(found, multi_token=())
  if config is not None and resize and config.vocab_size != found.vocab_size:
    tensors = ResizedTensors(tensors, family_of(found), config.vocab_size)
    found = dataclasses.replace(found, vocab_size=config.vocab_size)
  if config is not None:
    _check_same(config, found, folder)
  return found, tensors


def _check_same(wanted: Architecture, found: Architecture, folder: pathlib.Path) -> None:
  positions = found.positions
  if isinstance(positions, RoPE) and isinstance(wanted.positions, RoPE):
    positions = dataclasses.replace(positions, scaling=wanted.positions.scaling)
  found = dataclasses.replace(found, dropout=wanted.dropout, positions=positions)
  different = difference('model', resolved(wanted), resolved(found))
  if different:
    path, value, theirs = different
    raise ConfigError(path, value, f'{folder} has {theirs!r}: set it to that')


def read_params(folder: pathlib.Path, config: Architecture, tensors: Files,
                mesh: jax.sharding.Mesh | None, dtype: Any, progress: Progress | None, store: Store | None = None,
                family: Family | None = None) -> dict[str, Any]:
  """The parameters in opened files; errors name the folder."""
  finished, total = 0, sum(tensor.nbytes for tensor in tensors.values())

  def done(name: str) -> None:
    nonlocal finished
    size = tensors[name].nbytes
    tensors.forget(name)
    finished += size
    if progress:
      progress(finished, total)

  with _naming(folder):
    return params_from_state_dict(config, tensors, mesh, dtype, family=family, done=done, store=store)


@contextlib.contextmanager
def _naming(folder: pathlib.Path) -> Iterator[None]:
  """Errors name the folder."""
  try:
    yield
  except ConfigError as error:
    raise ConfigError(str(folder), error.value, error.hint) from error


def save_pretrained(directory: str | os.PathLike, config: Architecture, params: Any, *, dtype: str = 'float32',
                    max_length: int = 2_048, max_shard_bytes: int = 5_000_000_000, bos: int | None = None,
                    eos: int | Sequence[int] | None = None, pad: int | None = None,
                    extra: Mapping[str, bytes] | None = None, progress: Progress | None = None) -> None:
  """Writes a folder that `transformers` and `load_pretrained` load: `config.json`, `generation_config.json`, and
  `model.safetensors` or, beyond `max_shard_bytes`, several files with an index. The folder is written completely or not
  at all.

  Args:
    dtype: of the tensors, as in `load_pretrained`.
    max_length: see `config_to_hf`.   bos, eos, pad: the ids of the tokens that begin, end and fill up a text.
    extra: further files by name, such as a tokenizer's.

  Raises:
    ConfigError: no family of `transformers` expresses the architecture, the folder is not empty, or a tensor has
      numbers that are NaN, infinite or beyond the dtype. Nothing is written then.
  """
  dtype = float_type(dtype).name
  for name, ids in (('bos', bos), ('eos', eos), ('pad', pad)):
    require(all(isinstance(i, int) for i in (ids if isinstance(ids, list | tuple) else [ids]) if i is not None), name,
            ids, 'give the id of a token, or None')
  values = config_to_hf(config, max_length, bos, eos, pad) | {'dtype': dtype}
  texts = {'config.json': values, 'generation_config.json': generation_config(bos, eos, pad)}
  files = {name: json.dumps(value, indent=2).encode() + b'\n' for name, value in texts.items()}
  write_folder(directory, config, params, family_of(config), {**files, **(extra or {})}, dtype=dtype,
               max_shard_bytes=max_shard_bytes, progress=progress)


def write_folder(directory: str | os.PathLike, config: Architecture, params: Any, family: Family,
                 files: Mapping[str, bytes], *, dtype: str, max_shard_bytes: int = 5_000_000_000, name: str = SINGLE,
                 progress: Progress | None = None) -> None:
  """Writes the tensors under the names of `family`, and `files`, to a new folder."""
  dtype = float_type(dtype).name
  require(max_shard_bytes > 0, 'max_shard_bytes', max_shard_bytes, 'use a positive number of bytes')
  folder = pathlib.Path(directory).absolute()
  require(not folder.exists() or folder.is_dir() and not any(folder.iterdir()), 'directory', str(directory),
          'there is something already: name a new folder')
  described = {tensor: (np.dtype('float32' if family.float32.search(tensor) else dtype), shape)
               for tensor, shape in described_tensors(config, family).items()}
  size = lambda tensor: int(np.prod(described[tensor][1], dtype=np.int64)) * described[tensor][0].itemsize
  total, written, shards = sum(map(size, described)), 0, [[]]
  for tensor in described:
    if shards[-1] and sum(map(size, shards[-1])) + size(tensor) > max_shard_bytes:
      shards.append([])
    shards[-1].append(tensor)
  stem = name.removesuffix('.safetensors')
  names = [name] if len(shards) == 1 else [
    f'{stem}-{i:05d}-of-{len(shards):05d}.safetensors' for i in range(1, len(shards) + 1)]

  stream = tensors_from_params(config, params, family)

  def cast(count: int) -> Iterator[tuple[str, np.ndarray]]:
    nonlocal written
    for _ in range(count):
      tensor, values = next(stream)
      yield tensor, cast_checked(tensor, values, described[tensor][0])
      written += size(tensor)
      if progress:
        progress(written, total)

  staging = folder.with_name(f'.{folder.name}.{os.getpid()}.saving')
  staging.mkdir(parents=True)
  try:
    for file, shard in zip(names, shards, strict=True):
      write_file(staging / file, {tensor: described[tensor] for tensor in shard}, cast(len(shard)))
    if len(shards) > 1:
      weight_map = {tensor: file for file, shard in zip(names, shards, strict=True) for tensor in shard}
      index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
      (staging / f'{stem}.safetensors.index.json').write_text(json.dumps(index, indent=2) + '\n')
    for file, content in files.items():
      (staging / file).parent.mkdir(exist_ok=True)
      (staging / file).write_bytes(content)
    staging.rename(folder)  # onto nothing, or onto an empty folder
  except BaseException:
    shutil.rmtree(staging, ignore_errors=True)
    raise


# ------------------------------------------------------------------------------------------------ files of a folder
def read_json(folder: pathlib.Path, name: str) -> dict[str, Any]:
  file = inside(folder, name)
  try:
    values = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise ConfigError(str(file), None, 'there is no such file: name the folder of a Hugging Face model') from error
  except (OSError, ValueError, RecursionError) as error:
    raise ConfigError(str(file), type(error).__name__, f'not a readable JSON file: {error}') from error
  require(isinstance(values, dict), str(file), values, 'must hold a JSON object')
  return values


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The file called `name` in `folder`.

  Raises: ConfigError if it is a link out of the folder. Links from a snapshot of the Hub's cache to the cache's blobs
    are allowed.
  """
  file, home = folder / name, folder.resolve()
  homes = [home, home.parents[1] / 'blobs'] if home.parent.name == 'snapshots' else [home]
  require(name == pathlib.PurePath(name).name and file.resolve().parent in homes, str(file), str(file.resolve()),
          'a link that leads out of the folder is not followed: put the file itself there')
  return file


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  if (folder / INDEX).exists():
    weight_map = read_json(folder, INDEX).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
      raise ConfigError(str(folder / INDEX), weight_map, 'weight_map must name a file per tensor')
    for name in weight_map.values():
      plain = isinstance(name, str) and name == pathlib.PurePath(name).name and '\\' not in name and '\0' not in name
      require(plain and name.endswith('.safetensors'), str(folder / INDEX), name,
              'weight_map may only name .safetensors files of the same folder')
    names = sorted(set(weight_map.values()))
    for name in names:
      require((folder / name).is_file(), str(folder / name), None, 'the index names this file, and it is missing')
    files = [inside(folder, name) for name in names]
    # If both exist, `transformers` reads the single file; and it does not remove it when it saves several.
    require(SINGLE in names or not (folder / SINGLE).exists(), str(folder), [SINGLE, INDEX],
            'may be two models, one saved over the other: remove the one that is out of date')
    return files
  if (folder / SINGLE).exists():
    return [inside(folder, SINGLE)]
  raise no_weights(folder, f'neither {SINGLE} nor {INDEX}')


def no_weights(folder: pathlib.Path, missing: str) -> ConfigError:
  """The error for a folder without weights. If it has pickles, the error names them."""
  pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
  if pickled:
    return ConfigError(str(folder), pickled, 'pickled weights can run code: convert them to safetensors')
  return ConfigError(str(folder), None, f'holds {missing}')
