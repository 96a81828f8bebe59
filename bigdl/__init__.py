"""Scaling experiments in JAX and Flax: from one model file to a scaling law.

The folders are the architecture; imports run downward only.

  commands     one verb a file: train sweep work law plan compile generate
               convert evaluate
  train        the loop, checkpoints, evaluation, logs
  scaling      FLOP ledger, sweep grids, records, law estimators, report
  compiling    what a compiled program says: memory, traffic, time
  fleet        a sweep's manifest, who trains which cell, how it stands
  experiment   Experiment: one frozen value that names a whole run
  models       one system family a file
  objectives   what training means
  data         where batches come from
  optim        how parameters move
  interop      checkpoints of others, in and out
  layers       parts that two or more models share
  parallel     device meshes and sharding rules
  tensors      named arrays on disk, in shards of safetensors
  tree         paths, masks and sizes of pytrees
  storage      folders on disks and in object stores
  config       experiment files and overrides

The package exports nothing here, so that `import bigdl` stays instant.
"""
