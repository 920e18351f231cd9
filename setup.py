"""llm_jax: train language models in JAX. `pip install -c constraints.txt -e '.[test]'` gives the tested versions."""
import pathlib

from setuptools import find_packages, setup

CORE = [
  'jax>=0.10.2,<0.13',  # the tests pass with 0.10.2 and flax 0.12.8; 0.11.2 and 0.12.0.1 need flax 0.12.12
  'flax>=0.12.8',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8',
  'grain>=0.2.18',
  'numpy>=2.0',
  'ml_dtypes>=0.5',
  'ml_collections>=1.1.0',
  'absl-py>=2.1',
  'tiktoken>=0.12',
  'rustbpe>=0.1.0',
  'safetensors>=0.6',
  'rich>=13.9',
  'tensorboardX>=2.6.2',
]
HF = ['tokenizers>=0.22', 'transformers>=5.0']
DATA = ['pyarrow>=18', 'array_record>=0.8']
NOTEBOOK = ['matplotlib>=3.9', 'nbclient>=0.10', 'nbformat>=5.10', 'ipykernel>=6.29']

README = pathlib.Path(__file__).parent / 'README.md'

setup(
  name='llm_jax',
  version='0.1.0',
  description='Train language models in JAX, from the first token to an aligned model',
  long_description=README.read_text() if README.exists() else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=find_packages(include=['llm_jax', 'llm_jax.*', 'launch', 'launch.*', 'experiments', 'experiments.*']),
  python_requires='>=3.11',
  install_requires=CORE,
  extras_require={
    'gpu': ['jax[cuda13]'],
    'tpu': ['jax[tpu]'],
    'k8s': ['jax[k8s]'],
    'hf': HF,
    'data': DATA,
    'notebook': NOTEBOOK,
    # torch is the reference that numbers are checked against; `make test` installs it before whatever depends on it.
    'test': ['torch==2.13.0', 'trl>=1.16', 'pytest>=8.3', 'pytest-xdist>=3.6', 'ruff>=0.9', 'qwix>=0.1.8',
             'tensorboard>=2.18', *HF, *DATA, *NOTEBOOK],
  },
)
