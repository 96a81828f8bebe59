"""Cells and sweeps that train nothing, as values."""

from __future__ import annotations

from bigdl.fleet import manifest

CODE = {'bigdl': '0123456789abcdef'}


def cell(name: str, flops: float, steps: int = 10, **more) -> manifest.Cell:
  return manifest.cell(
    name,
    config={'steps': steps, 'layout': {'data': 1}, **more},
    data={'train': 'rows-1', 'held_out': None},
    code=CODE,
    flops=flops,
    facts={'budget': flops},
  )


def plan(*cells: manifest.Cell) -> manifest.Manifest:
  return manifest.Manifest('tiny.py', 'token', CODE, cells)
