"""Files that grow, in an object store, where none can be appended to.

They grow in a folder on this machine, and are put whole where they belong.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
import threading
import time

from bigdl import storage

EVERY = 10.0  # Seconds between two copies, at least.
SHARE = 0.05  # At most so much of the time is spent copying.


class Mirror:
  """A local folder whose files are copied to a remote one.

  `folder` is where to write: the very place where that is on a disk, and then
  there is nothing to copy.
  """

  def __init__(self, workdir: pathlib.Path):
    self._remote = workdir if storage.is_remote(workdir) else None
    self.folder = workdir
    self._sent: dict[str, tuple[int, int]] = {}
    self._lock = threading.Lock()
    self._over = threading.Event()
    self._thread: threading.Thread | None = None
    if self._remote is not None:
      self.folder = pathlib.Path(tempfile.mkdtemp(prefix='bigdl-'))

  def start(self) -> None:
    """Copies what is there, and from now on what is new, on a thread."""
    if self._remote is not None:
      self.flush()
      self._thread = threading.Thread(target=self._work, daemon=True)
      self._thread.start()

  def flush(self) -> None:
    """Copies each file that has changed; raises what the store raises."""
    if self._remote is None:
      return
    with self._lock:
      for file in sorted(self.folder.rglob('*')):
        name = file.relative_to(self.folder).as_posix()
        # The names of those that are being written begin with a dot.
        if not file.is_file() or file.name.startswith('.'):
          continue
        known = file.stat()
        state = known.st_size, known.st_mtime_ns
        if self._sent.get(name) != state:
          storage.send(file, self._remote / name)
          self._sent[name] = state

  def close(self) -> None:
    """Copies the rest and removes the local folder."""
    if self._remote is None:
      return
    self._over.set()
    if self._thread is not None:
      self._thread.join()
    try:
      self.flush()
    finally:
      shutil.rmtree(self.folder, ignore_errors=True)

  def _work(self) -> None:
    pause = EVERY
    while not self._over.wait(pause):
      began = time.monotonic()
      # A store that cannot be reached now is asked again; `flush` and `close`,
      # on which a checkpoint waits, raise.
      with contextlib.suppress(Exception):
        self.flush()
      pause = max(EVERY, (time.monotonic() - began) / SHARE)
