"""What `launch.convert --push` sends to the Hugging Face hub."""
import pathlib

from llm_jax.config.hub_names import HubName
from llm_jax.runtime.hub import explaining_push, hub
from llm_jax.tracking.numbers import size


def show(folder: pathlib.Path, name: str) -> None:
  """Prints the files that would be written and the card."""
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  print(f'would be written to {name}:')
  for path in files:
    print(f'  {path.relative_to(folder).as_posix():<40}{size(path.stat().st_size):>12}')
  print('\nREADME.md:\n')
  print((folder / 'README.md').read_text(encoding='utf-8'))


def send(folder: pathlib.Path, name: str, private: bool) -> str:
  """Makes the repository where there is none, and commits the files to it; returns the commit's address.

  Raises:
    ConfigError: the hub cannot be reached, or lets nobody write there; one line says what to do.
  """
  api = hub().HfApi()
  with explaining_push(HubName('model', name)):
    api.create_repo(name, repo_type='model', private=private or None, exist_ok=True)
    commit = api.upload_folder(repo_id=name, folder_path=folder, repo_type='model',
                               commit_message='Written by llm_jax')
  return str(commit.commit_url)
