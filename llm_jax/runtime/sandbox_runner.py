"""What `sandbox.py` starts: sets limits, forbids what the program has no need for, and runs it.

  python sandbox_runner.py MEMORY_BYTES CPU_SECONDS < WORD and PROGRAM

It is a program, which imports nothing of this package.
"""
import io
import os
import resource
import sys
import traceback

STOPPED = 70
# Events of Python's audit hooks (PEP 578) that begin with one of these.
FORBIDDEN = (
  'socket.', 'os.fork', 'os.exec', 'os.spawn', 'os.posix_spawn', 'os.system', 'os.kill', 'os.putenv', 'os.remove',
  'os.rename', 'os.rmdir', 'os.mkdir', 'os.link', 'os.symlink', 'os.truncate', 'os.chmod', 'os.chown', 'os.utime',
  'os.setxattr', 'os.removexattr', 'os.chflags', 'os.startfile', 'subprocess.', 'shutil.', 'pty.',
  'signal.pthread_kill', 'ctypes.', 'mmap.', 'urllib.', 'http.', 'ftplib.', 'smtplib.', 'sqlite3.', 'tempfile.',
  'syslog.', 'winreg.', 'resource.setrlimit', 'resource.prlimit', 'gc.get_objects', 'gc.get_referrers')
FORBIDDEN_MODULES = ('_posixsubprocess', '_ctypes', 'ctypes', 'multiprocessing', '_multiprocessing')


def forbid(event, arguments):
  """An audit hook, which cannot be taken away again."""
  reason = None
  if event.startswith(FORBIDDEN):
    reason = event
  elif event == 'open' and writes(arguments):
    reason = f'open for writing: {str(arguments[0])[:80]}'
  elif event == 'import' and arguments[0] in FORBIDDEN_MODULES:
    reason = f'import {arguments[0]}'
  if reason is not None:
    os.write(1, f'\nnot allowed: {reason}\n'.encode('utf-8', 'replace'))
    os._exit(STOPPED)


def writes(arguments):
  """Whether a file is opened for anything but reading."""
  _, mode, flags = arguments
  if isinstance(mode, str) and set(mode) & set('wax+'):
    return True
  return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))


def main():
  memory, seconds = map(int, sys.argv[1:])
  word, _, program = sys.stdin.buffer.read().decode('utf-8', 'surrogatepass').partition('\n')
  sys.stdin = io.StringIO()
  for limit, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 0),
                      (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
    resource.setrlimit(limit, (most, most))
  code = compile_program(program)
  del sys.modules['resource']
  sys.addaudithook(forbid)
  try:
    exec(code, {'__name__': '__main__'})
  except MemoryError:
    say('MemoryError')
    os._exit(1)
  except BaseException as error:
    say(''.join(traceback.format_exception_only(error)).strip() or type(error).__name__)
    os._exit(1)
  sys.stdout.flush()
  say(word)
  os._exit(0)


def compile_program(program):
  try:
    return compile(program, 'program.py', 'exec')
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    say(f'{type(error).__name__}: {error}')
    os._exit(1)


def say(line):
  os.write(1, f'\n{line}\n'.encode('utf-8', 'replace'))


if __name__ == '__main__':
  main()
