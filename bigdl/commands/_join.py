"""How the processes of one job find each other.

JAX ends a process with a trace of its own where the others do not come, so they
meet here first, at the coordinator's own address, and say in one line who is
missing. Where JAX detects the cluster (Slurm, Cloud TPU, Kubernetes, Open MPI),
it knows who comes, and nobody meets here.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import socket
import sys
import time
import traceback

GREETING = 'bigdl'
GO = 'go'
SECONDS_BETWEEN_TRIES = 0.2
SECONDS_FOR_OTHERS = 1.0
# Longest line that one process says to another.
LONGEST = 512


def join(
  coordinator: str, processes: int, process: int, seconds: float
) -> None:
  """Makes this process one of a job; call it before any computation.

  Args:
    coordinator: HOST:PORT of process 0; '' where JAX is to detect all three.
    processes: How many there are.
    process: Which one this is, from 0.
    seconds: How long to wait for the others.

  Raises:
    ValueError: The flags make no sense, no cluster is detected, or the others
      have not come in time.
  """
  # JAX and the system take it as a whole number of 32 bits.
  if not 0 < seconds < 2**31:
    raise ValueError(f'join_seconds={seconds} must be above 0 and below 2**31')
  import jax

  if not coordinator:
    if processes or process >= 0:
      raise ValueError('--processes and --process need --coordinator=HOST:PORT')
    try:
      jax.distributed.initialize(initialization_timeout=int(max(1, seconds)))
    except ValueError as error:
      raise ValueError(
        '--distributed: JAX detects no cluster here; give --coordinator,'
        f' --processes and --process ({error})'
      ) from error
    return
  host, colon, port = coordinator.rpartition(':')
  if not (colon and host and port.isdigit() and 0 < int(port) < 2**16):
    raise ValueError(f'coordinator={coordinator!r} must be HOST:PORT')
  if processes < 1:
    raise ValueError(f'processes={processes} must be at least 1')
  if not 0 <= process < processes:
    raise ValueError(
      f'process={process} must be from 0 to {processes - 1}, as'
      f' processes={processes}'
    )
  meet(host.strip('[]'), int(port), processes, process, seconds)
  jax.distributed.initialize(
    coordinator, processes, process, initialization_timeout=int(max(1, seconds))
  )


@contextlib.contextmanager
def leaving() -> Iterator[None]:
  """Ends this process at once at an error, where it is one of several.

  The others wait for it inside an update and JAX, at an exit, would wait for
  them; once it is gone, JAX ends them: at once where it was process 0, else when
  it has not heard of it for 100 s.
  """
  import jax

  try:
    yield
  except BaseException as error:
    if jax.process_count() == 1:
      raise
    code, lines = 1, [traceback.format_exc()]
    if isinstance(error, ValueError | OSError):
      code, lines = 2, [f'bigdl: {" ".join(str(error).split())}']
    elif isinstance(error, KeyboardInterrupt):
      code, lines = 130, ['bigdl: interrupted']
    print(*lines, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if jax.process_index() == 0:
      # Those that meet the same error say so before JAX ends them.
      time.sleep(SECONDS_FOR_OTHERS)
    os._exit(code)


def meet(
  host: str, port: int, processes: int, process: int, seconds: float
) -> None:
  """Returns once all processes are there; raises ValueError on each if not."""
  end = time.monotonic() + seconds
  if process:
    _attend(host, port, f'{GREETING} {process} {processes}', end, seconds)
  elif processes > 1:
    _receive(port, processes, end, seconds)


def _receive(port: int, processes: int, end: float, seconds: float) -> None:
  """Waits for all others as process 0, then tells them how it went."""
  both = socket.has_dualstack_ipv6()
  try:
    server = socket.create_server(
      ('', port),
      family=socket.AF_INET6 if both else socket.AF_INET,
      dualstack_ipv6=both,
    )
  except OSError as error:
    raise ValueError(
      f'coordinator: port {port} of this host cannot be used: {error.strerror}'
    ) from error
  came: dict[int, socket.socket] = {}
  with contextlib.ExitStack() as stack:
    stack.enter_context(server)
    problem = ''
    while len(came) < processes - 1 and not problem:
      server.settimeout(max(0.01, end - time.monotonic()))
      try:
        guest = stack.enter_context(server.accept()[0])
      except TimeoutError:
        missing = sorted({*range(1, processes)} - {*came})
        problem = (
          f'process {", ".join(map(str, missing))} of {processes} has not come'
          f' to the coordinator within {seconds:g} s'
        )
        break
      problem = _greet(guest, came, processes, end)
    for guest in came.values():
      _answer(guest, problem or GO)
  if problem:
    raise ValueError(problem)


def _greet(
  guest: socket.socket,
  came: dict[int, socket.socket],
  processes: int,
  end: float,
) -> str:
  """Takes in one process; returns why the job cannot be, or ''."""
  words = _line(guest, min(end, time.monotonic() + 5)).split()
  if len(words) != 3 or words[0] != GREETING:
    # A scanner of ports, or a probe of the cluster's health.
    return ''
  process, of = int(words[1]), int(words[2])
  if of != processes:
    problem = f'processes={of} on process {process}, {processes} on process 0'
  elif process in came:
    problem = f'process={process} has come twice'
  else:
    came[process] = guest
    return ''
  _answer(guest, problem)
  return problem


def _attend(
  host: str, port: int, greeting: str, end: float, seconds: float
) -> None:
  """Goes to process 0 and waits until it has all."""
  where, reason = f'coordinator={host}:{port}', 'no answer'
  while time.monotonic() < end:
    try:
      left = max(0.01, end - time.monotonic())
      with socket.create_connection((host, port), timeout=left) as server:
        server.sendall(f'{greeting}\n'.encode())
        # The coordinator's own clock began earlier or later than this one.
        answer = _line(server, end + SECONDS_BETWEEN_TRIES + 1)
    except OSError as error:
      reason = error.strerror or str(error)
      time.sleep(SECONDS_BETWEEN_TRIES)
      continue
    if answer == GO:
      return
    if answer:
      raise ValueError(answer)
    reason = 'it closed the connection'
    time.sleep(SECONDS_BETWEEN_TRIES)
  raise ValueError(f'{where} cannot be reached in {seconds:g} s: {reason}')


def _line(peer: socket.socket, end: float) -> str:
  """Returns a line from the peer, '' where none comes."""
  text = b''
  while not text.endswith(b'\n') and len(text) < LONGEST:
    peer.settimeout(max(0.01, end - time.monotonic()))
    try:
      part = peer.recv(LONGEST)
    except OSError:
      return ''
    if not part:
      return ''
    text += part
  return text.decode(errors='replace').strip()


def _answer(guest: socket.socket, text: str) -> None:
  """Sends a line, and waits until the guest has hung up.

  Who hangs up first keeps the port busy for a while; process 0 needs it.
  """
  with contextlib.suppress(OSError):
    guest.settimeout(1)
    guest.sendall(f'{text}\n'.encode())
    guest.recv(1)
