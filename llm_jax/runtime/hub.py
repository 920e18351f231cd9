"""The Hugging Face hub: names become commits, and commits files in the hub's cache on this machine.

`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` mean what they mean to `huggingface_hub`.
"""
import concurrent.futures
import contextlib
import importlib
import json
import logging
import os
import pathlib
from collections.abc import Generator, Sequence
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.hub_names import HubName, is_hub_name
from llm_jax.config.packages import is_installed

# Of a model: what is read here. Weights in other layouts, such as `original/`, are left where they are.
DESCRIPTION = ('*.json', '*.jinja', '*.txt', 'tokenizer.model')
WEIGHTS = '*.safetensors'
NOT_READ = ('*/*.json', '*/*.txt', '*/*.safetensors', '*/tokenizer.model', 'consolidated*')
DOWNLOADS = 8  # files at a time


def hub() -> Any:
  """The package `huggingface_hub`.

  Raises:
    ConfigError: it is not installed.
  """
  if not is_installed('huggingface_hub'):
    raise ConfigError('huggingface_hub', 'not installed', "what is no folder here is asked of the Hugging Face hub: "
                      "pip install 'llm_jax[hub]', or name a folder")
  return importlib.import_module('huggingface_hub')


def commit_of(name: HubName) -> str:
  """The commit (40 hexadecimal digits) that a name stands for now; without a network, in the cache.

  Raises:
    ConfigError: there is no such thing, or it cannot be asked for; one line says what to do.
  """
  package = hub()
  with explaining(name):
    try:
      return package.HfApi().repo_info(name.name, repo_type=name.kind, revision=name.revision).sha
    except Exception as error:
      cached = None if _is_answer(error) else _cached_commit(name)
      if cached is None:
        raise
      logging.getLogger(__name__).warning('%s: the hub cannot be reached, and the cache has commit %s of it: that is '
                                          'used', name.name, cached)
      return cached


def _is_answer(error: Exception) -> bool:
  """Whether the hub has answered, and said no."""
  errors = importlib.import_module('huggingface_hub.errors')
  return isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError)


def _cached_commit(name: HubName) -> str | None:
  """The commit that the branch or tag had when the cache was filled. What was fetched by its commit alone has none of
  these: then the one that was fetched last."""
  package = hub()
  try:
    repositories = package.scan_cache_dir().repos
  except package.CacheNotFound:
    return None
  for repository in repositories:
    if (repository.repo_type, repository.repo_id) != (name.kind, name.name):
      continue
    fetched = {each.commit_hash: each.last_modified for each in repository.revisions}
    found = repository.refs.get(name.revision or 'main')
    if found is not None:
      return found.commit_hash
    if name.revision is None:
      return max(fetched, key=lambda commit: fetched[commit], default=None)
    return name.revision if name.revision in fetched else None
  return None


def model_folder(folder: str | os.PathLike[str], revision: str | None = None, weights: bool = True) -> pathlib.Path:
  """The folder itself where there is one; of a name on the hub the folder in the cache that holds the model.

  weights: whether they are wanted, and not only what describes the model and its tokenizer.

  Raises:
    ConfigError: as `commit_of`.
  """
  text = os.fspath(folder)
  if not is_hub_name(text):
    return pathlib.Path(text)
  name = HubName('model', text, revision)
  patterns = [*DESCRIPTION, *([WEIGHTS] if weights else [])]
  package = hub()
  with explaining(name):
    return pathlib.Path(package.snapshot_download(text, revision=revision, allow_patterns=patterns,
                                                  ignore_patterns=list(NOT_READ)))


# ---------------------------------------------------------------------------------------------- data sets
def dataset_files(name: HubName, config: str | None, split: str, cache: pathlib.Path) -> dict[str, pathlib.Path]:
  """{path in the repository: file in the cache} of one split of a data set, in the order of the paths.

  Args:
    name: its revision is a commit.
    cache: where the list of the files is kept, which never changes.

  Raises:
    ConfigError: there is no such configuration or split, or as `commit_of`.
  """
  paths = _listed(name, config, split, cache)
  package = hub()

  def download(path: str) -> pathlib.Path:
    return pathlib.Path(package.hf_hub_download(name.name, path, repo_type=name.kind, revision=name.revision))

  with explaining(name), concurrent.futures.ThreadPoolExecutor(DOWNLOADS) as pool:
    return dict(zip(paths, pool.map(download, paths), strict=True))


def _listed(name: HubName, config: str | None, split: str, cache: pathlib.Path) -> list[str]:
  from llm_jax.runtime.files import write_atomic
  key = '--'.join([name.name.replace('/', '--'), str(name.revision), config or '', split.replace('/', '-')])
  kept = cache / 'hub' / f'{key}.json'
  with contextlib.suppress(OSError, ValueError):
    return [str(path) for path in json.loads(kept.read_bytes())]
  paths = _ask_for_files(name, config, split)
  with contextlib.suppress(OSError):  # a list that is not kept is asked for again
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, json.dumps(paths), durable=False)
  return paths


def _ask_for_files(name: HubName, config: str | None, split: str) -> list[str]:
  """What `datasets` takes for the files of the split: of the hub, or without a network of the cache."""
  with explaining(name):
    try:
      found = _files_by_split(name.name, f'hf://datasets/{name.name}@{name.revision}/', name=config,
                              revision=name.revision)
    except Exception as error:
      folder = None if isinstance(error, ValueError) else _cached_snapshot(name)
      if folder is None:
        raise
      found = _files_by_split(str(folder), f'{folder.resolve()}/', **_data_files(folder, name, config, split))
  if split not in found:
    raise ConfigError('split', split, f'{name.name} has no such split; use one of {", ".join(found)}')
  return sorted(found[split])


def _files_by_split(path: str, root: str, **arguments: Any) -> dict[str, list[str]]:
  datasets: Any = importlib.import_module('datasets')
  files = datasets.load_dataset_builder(path, **arguments).config.data_files or {}
  return {str(split): [str(file).removeprefix(root) for file in each] for split, each in files.items()}


def _cached_snapshot(name: HubName) -> pathlib.Path | None:
  cache = pathlib.Path(importlib.import_module('huggingface_hub.constants').HF_HUB_CACHE)
  folder = cache / f'datasets--{name.name.replace("/", "--")}' / 'snapshots' / str(name.revision)
  return folder if folder.is_dir() else None


def _data_files(folder: pathlib.Path, name: HubName, config: str | None, split: str) -> dict[str, Any]:
  """The patterns that the card of a data set states for a split: a cache may lack the files of the others."""
  package = hub()
  card = folder / 'README.md'
  stated: Sequence[Any] = (package.DatasetCard.load(card).data.get('configs') if card.is_file() else None) or ()
  by_name = {str(each['config_name']): each['data_files'] for each in stated if 'data_files' in each}
  if not by_name:
    return {} if config is None else {'name': config}
  default = next((each['config_name'] for each in stated if each.get('default')), None)
  chosen = config or default or ('default' if 'default' in by_name else next(iter(by_name)))
  if chosen not in by_name:
    raise ConfigError('config', config, f'{name.name} has no such configuration; use one of {", ".join(by_name)}')
  files = by_name[chosen]
  is_by_split = isinstance(files, list) and all(isinstance(each, dict) for each in files)
  by_split = {each['split']: each['path'] for each in files} if is_by_split else {'train': files}
  if split not in by_split:
    raise ConfigError('split', split, f'{name.name} has no such split; use one of {", ".join(by_split)}')
  return {'data_files': {split: by_split[split]}}


# ---------------------------------------------------------------------------------------------- what goes wrong
@contextlib.contextmanager
def explaining(name: HubName) -> Generator[None]:
  """Turns whatever the hub answers, or does not, into one line with what to do."""
  try:
    yield
  except ConfigError:
    raise
  except Exception as error:
    raise ConfigError(name.kind, name.name, _explanation(name, error)) from error


@contextlib.contextmanager
def explaining_push(name: HubName) -> Generator[None]:
  """The same where something is written to the hub."""
  try:
    yield
  except Exception as error:
    errors = importlib.import_module('huggingface_hub.errors')
    response = getattr(error, 'response', None)
    status = getattr(response, 'status_code', None)
    reason = ' '.join(str(error).split())[:200]
    if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
      hint = 'the hub lets nobody write there without a token for it: log in with `hf auth login`, or name one of yours'
    elif status is not None:
      hint = f'the hub refuses it: {reason}'
    else:
      hint = f'the hub cannot be reached ({type(error).__name__}: {reason}): try again, or write a folder with --to_hf'
    raise ConfigError('--push', name.name, hint) from error


def _explanation(name: HubName, error: Exception) -> str:
  errors = importlib.import_module('huggingface_hub.errors')
  what = 'model' if name.kind == 'model' else 'data set'
  here = 'is no folder here, and ' if name.kind == 'model' else ''
  kind = '' if name.kind == 'model' else ' --repo-type=dataset'
  reason = ' '.join(str(error).split())[:200]
  chain = list(_chain(error))

  def has(*kinds: type[BaseException]) -> bool:
    return any(isinstance(each, kinds) for each in chain)

  if has(errors.GatedRepoError):
    return 'the hub asks who reads it: accept its terms there, and log in with `hf auth login`'
  if has(errors.RepositoryNotFoundError):
    return f'{here}the hub shows no such {what}: correct the name, or log in with `hf auth login` where it is private'
  if has(errors.RevisionNotFoundError):
    return f'it has no revision {name.revision!r}: name a branch, a tag or a commit of it'
  if has(ValueError) and not has(OSError):  # of `datasets`: a configuration that is not there
    return reason
  return (f'{here}the hub cannot be reached ({type(error).__name__}: {reason}): fetch it where there is a network, `hf '
          f'download {name.name}{kind}`, and bring the cache (HF_HOME) here, or name a folder')


def _chain(error: BaseException | None) -> Generator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__
