"""How a process ends."""
import subprocess
import sys

LEAVING = '''
import os, threading, time
from llm_jax.runtime.requests import leave
def print_on():
  while True:
    os.write(2, b'step\\n')
for _ in range(4):
  threading.Thread(target=print_on, daemon=True).start()
time.sleep(0.1)
leave(70, 'error: the last line')
'''


def test_the_last_line_is_the_last_while_other_threads_print():
  for _ in range(5):
    ended = subprocess.run([sys.executable, '-c', LEAVING], capture_output=True, text=True, check=False, timeout=60)
    lines = ended.stderr.splitlines()
    assert ended.returncode == 70
    assert 'step' in lines and lines[-1] == 'error: the last line'
