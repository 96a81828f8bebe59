"""`python -m bigdl VERB …`: finds the verb's file, runs it, returns a code.

Exit codes: 0 done, 1 a run that failed by its numbers (diverged), 2 bad input,
3 a run that does not fit the machine it was compiled for,
130 and 143 stopped by SIGINT and SIGTERM (after saving, where there is a run).
Nothing heavy is imported here: the verbs' help is read from their source.
"""

from __future__ import annotations

import ast
import difflib
import errno
import importlib
import importlib.util
import os
import pathlib
import pkgutil
import re
import sys
import traceback

import bigdl

# What the machine refuses, as opposed to what the code gets wrong.
REFUSALS = {
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EEXIST,
}


def verbs() -> list[str]:
  """Returns the verbs: the files in `commands`, without importing them."""
  folder = str(pathlib.Path(__file__).parent / 'commands')
  return sorted(
    m.name for m in pkgutil.iter_modules([folder]) if m.name[0] != '_'
  )


def help_text() -> str:
  """Returns the list of verbs with the first line of their docstrings."""
  folder = pathlib.Path(__file__).parent / 'commands'
  lines = ['usage: bigdl VERB …', '', (bigdl.__doc__ or '').partition('\n')[0]]
  lines += ['']
  for verb in verbs():
    source = (folder / f'{verb}.py').read_text('utf-8')
    doc = ast.get_docstring(ast.parse(source)) or ''
    lines.append(f'  {verb:<10}{doc.partition(chr(10))[0]}')
  lines += ['', '`bigdl VERB --help` lists the flags of a verb;']
  lines += ['`--debug` shows the traceback of an error.']
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
  """Runs one verb and returns the exit code."""
  args = list(sys.argv[1:] if argv is None else argv)
  _quiet()
  _give_threads()
  debug = '--debug' in args or os.environ.get('BIGDL_DEBUG') in ('1', 'true')
  try:
    code = _dispatch([a for a in args if a != '--debug'])
    # Here, because at exit Python would complain of a reader that has gone.
    sys.stdout.flush()
    return code
  except ValueError as e:
    return _fail(str(e), debug)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except OSError as e:
    if e.errno is None:
      # A store does not answer, say: not bad input, and later it may.
      return _fail(str(e), debug, code=1)
    if e.errno not in REFUSALS:
      raise
    where = f': {e.filename}' if e.filename else ''
    return _fail(f'{e.strerror}{where}', debug)
  except KeyboardInterrupt:
    return _fail('interrupted', debug, code=130)
  except SystemExit as e:
    return e.code if isinstance(e.code, int) else 2 if e.code else 0


def _quiet() -> None:
  """Keeps compilers for machines elsewhere from warning that this is none.

  libtpu and the CUDA plugin may be here to compile with; JAX, once it looks for
  devices, has them search for theirs, and they complain at length on stderr.
  """
  devices = ('/dev/nvidiactl', '/dev/nvidia0', '/dev/dxg')
  if importlib.util.find_spec('jax_plugins'):
    if not any(map(os.path.exists, devices)):
      os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
  if 'JAX_PLATFORMS' in os.environ or not importlib.util.find_spec('libtpu'):
    return
  if not _has_tpu():
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    # Any kind of TPU will do, as none is there.
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')


def _give_threads() -> None:
  """Gives virtual devices of a CPU as many threads as collectives may hold.

  A device that waits for the others in a collective keeps a thread; were there no
  more of them than devices, two collectives at a time would wait for ever.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  asked = re.search(r'xla_force_host_platform_device_count=(\d+)', flags)
  if asked and int(asked[1]) > 1:
    # XLA's number of threads where it is above that of cores.
    os.environ.setdefault('NPROC', str(4 * int(asked[1])))


def _has_tpu() -> bool:
  return any(map(_is_tpu, pathlib.Path('/sys/bus/pci/devices').glob('*')))


def _is_tpu(device: pathlib.Path) -> bool:
  """Whether a PCI device is Google's, other than a disk or a network card."""
  try:
    vendor, kind = (
      (device / n).read_text().strip() for n in ('vendor', 'device')
    )
  except OSError:
    return False
  return vendor == '0x1ae0' and kind not in ('0x001f', '0x0042')


def _dispatch(args: list[str]) -> int:
  if not args or args[0] in ('-h', '--help', 'help'):
    print(help_text())
    return 0 if args else 2
  verb = args[0]
  if verb not in verbs():
    close = difflib.get_close_matches(verb, verbs(), 1, 0.4)
    hint = f'; nearest is {close[0]}' if close else ''
    raise ValueError(f'{verb}: no such verb{hint}')
  return importlib.import_module(f'bigdl.commands.{verb}').main(args[1:])


def _fail(message: str, debug: bool, *, code: int = 2) -> int:
  """Prints one line, whatever the message holds; the traceback on demand."""
  if debug:
    traceback.print_exc()
  print(f'bigdl: {" ".join(message.split())}', file=sys.stderr)
  return code


if __name__ == '__main__':
  sys.exit(main())
