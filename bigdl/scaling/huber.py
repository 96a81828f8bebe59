"""Huber fits of L(N, D) = E + A/N^alpha + B/D^beta, many at a time.

Hoffmann et al. (2022; arXiv:2203.15556), Section D.2: the sum over runs of
Huber(delta) of log L_hat - log L, with log L_hat the log-sum-exp of
(e, a - alpha log N, b - beta log D). The starts lie on the profile of
(alpha, beta): for each pair the weights E, A, B solve a linear problem
(variable projection). From there all problems (starts or resamples) take
damped Newton steps together, with the exact Hessian.

Differs from the paper: Newton instead of L-BFGS, which stops early on this
objective (Besiroglu et al., 2024; arXiv:2404.10102); log N and log D are
centred, which takes the condition number from 1e11 to about 1e2.

Legend: S problems (starts or resamples), R runs, P = 5 parameters, in the
order e, a, b, alpha, beta.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# The exponents' box: outside it a term is a constant or a single point.
EXPONENT_LOW = 1e-3
EXPONENT_HIGH = 5.0
# A term below this share of the loss is as good as absent.
SHARE_LOW = 1e-7
_CHUNK = 65536  # Numbers per array: about what a level-2 cache holds.


@dataclasses.dataclass(frozen=True)
class Solution:
  """Minimisers of S problems, in centred coordinates."""

  theta_SP: np.ndarray
  objective_S: np.ndarray
  gradient_S: np.ndarray  # Largest entry of the free gradient, unscaled.
  steps_S: np.ndarray


@dataclasses.dataclass(frozen=True)
class Problem:
  """Runs in centred logs: x = log N - mean, z = log D - mean, y = log L."""

  x_R: np.ndarray
  z_R: np.ndarray
  y_R: np.ndarray
  delta: float = 1e-3

  @property
  def low_P(self) -> np.ndarray:
    level = np.log(SHARE_LOW) + self.y_R.min()
    return np.array([level, level, level, EXPONENT_LOW, EXPONENT_LOW])

  @property
  def high_P(self) -> np.ndarray:
    # No term can exceed every loss by much: its part of the sum would.
    level = self.y_R.max() + 5.0
    return np.array([level, level, level, EXPONENT_HIGH, EXPONENT_HIGH])

  def log_loss(self, theta_SP: np.ndarray) -> np.ndarray:
    """Returns log L_hat, `[S, R]`."""
    return _terms(theta_SP, self.x_R, self.z_R)[0]


def _terms(theta_SP, x_R, z_R):
  """Returns log L_hat and the shares of A and B in it, each `[S, R]`."""
  e_S1, a_S1, b_S1, alpha_S1, beta_S1 = np.moveaxis(theta_SP, -1, 0)[..., None]
  one_SR = a_S1 - alpha_S1 * x_R
  two_SR = b_S1 - beta_S1 * z_R
  top_SR = np.maximum(np.maximum(one_SR, two_SR), e_S1)
  one_SR = np.exp(one_SR - top_SR)
  two_SR = np.exp(two_SR - top_SR)
  sum_SR = np.exp(e_S1 - top_SR) + one_SR + two_SR
  return np.log(sum_SR) + top_SR, one_SR / sum_SR, two_SR / sum_SR


def _newton(problem, theta_SP, y_SR, w_SR):
  """Returns objective `[S]`, gradient `[S, P]`, Hessian `[S, P, P]`, scale.

  The Hessian is exact. The scale, `[S, P]`, is the diagonal of that of
  iteratively reweighted least squares, which is never negative.
  """
  x, z, delta = problem.x_R, problem.z_R, problem.delta
  log_SR, pa_SR, pb_SR = _terms(theta_SP, x, z)
  r_SR = log_SR - y_SR
  size_SR = np.abs(r_SR)
  psi_SR = np.clip(r_SR, -delta, delta)
  part_SR = np.minimum(size_SR, delta)
  objective_S = np.einsum('sr,sr->s', w_SR, part_SR * (size_SR - 0.5 * part_SR))
  one = np.ones_like(x)
  ax, az = np.stack([one, x, x * x], 1), np.stack([one, z, z * z], 1)
  cross = np.stack([one, x, z, x * z], 1)
  t_SR = w_SR * psi_SR
  la, lb = (t_SR * pa_SR) @ ax, (t_SR * pb_SR) @ az
  le = t_SR.sum(1) - la[:, 0] - lb[:, 0]
  gradient = np.stack([le, la[:, 0], lb[:, 0], -la[:, 1], -lb[:, 1]], 1)
  # Second derivatives of the log-sum-exp itself, weighted by psi.
  curve = np.zeros((*gradient.shape, 5))
  curve[:, 0, 0] = le
  curve[:, 1, 1], curve[:, 3, 3] = la[:, 0], la[:, 2]
  curve[:, 2, 2], curve[:, 4, 4] = lb[:, 0], lb[:, 2]
  curve[:, 1, 3] = curve[:, 3, 1] = -la[:, 1]
  curve[:, 2, 4] = curve[:, 4, 2] = -lb[:, 1]
  q_SR = w_SR * (size_SR <= delta) - t_SR
  hessian = curve + _outer(q_SR, pa_SR, pb_SR, ax, az, cross)
  weight_SR = w_SR * (delta / np.maximum(size_SR, delta))
  pe_SR = 1 - pa_SR - pb_SR
  ee = np.einsum('sr,sr,sr->s', weight_SR, pe_SR, pe_SR)
  aa = (weight_SR * pa_SR * pa_SR) @ ax
  bb = (weight_SR * pb_SR * pb_SR) @ az
  scale = np.stack([ee, aa[:, 0], bb[:, 0], aa[:, 2], bb[:, 2]], 1)
  return objective_S, gradient, hessian, scale


def _outer(q_SR, pa_SR, pb_SR, ax, az, cross):
  """Returns sum_r q J J^T, `[S, P, P]`, for the Jacobian J of log L_hat."""
  pe_SR = 1 - pa_SR - pb_SR
  qe, qa, qb = q_SR * pe_SR, q_SR * pa_SR, q_SR * pb_SR
  ee = np.einsum('sr,sr->s', qe, pe_SR)
  ea = (qe * pa_SR) @ ax[:, :2]
  eb = (qe * pb_SR) @ az[:, :2]
  aa = (qa * pa_SR) @ ax
  bb = (qb * pb_SR) @ az
  ab = (qa * pb_SR) @ cross
  h = np.empty((len(ee), 5, 5))
  h[:, 0, 0] = ee
  h[:, 0, 1], h[:, 0, 3] = ea[:, 0], -ea[:, 1]
  h[:, 0, 2], h[:, 0, 4] = eb[:, 0], -eb[:, 1]
  h[:, 1, 1], h[:, 1, 3], h[:, 3, 3] = aa[:, 0], -aa[:, 1], aa[:, 2]
  h[:, 2, 2], h[:, 2, 4], h[:, 4, 4] = bb[:, 0], -bb[:, 1], bb[:, 2]
  h[:, 1, 2], h[:, 2, 3] = ab[:, 0], -ab[:, 1]
  h[:, 1, 4], h[:, 3, 4] = -ab[:, 2], ab[:, 3]
  low = np.tril_indices(5, -1)
  h[:, low[0], low[1]] = h[:, low[1], low[0]]
  return h


def minimise(
  problem: Problem,
  theta_SP: np.ndarray,
  *,
  y_SR: np.ndarray | None = None,
  w_SR: np.ndarray | None = None,
  steps: int = 300,
  tolerance: float = 1e-9,
) -> Solution:
  """Takes S problems from `theta_SP` to their minimisers.

  Args:
    problem: The runs; its box bounds every parameter.
    theta_SP: Where each problem starts.
    y_SR: Log losses of each problem, if not those of the runs.
    w_SR: How often each run counts, if not once (a bootstrap's counts).
    steps: At most so many Newton steps.
    tolerance: A problem is done where no free entry of the gradient exceeds
      this share of delta times the number of runs.
  """
  count, runs = len(theta_SP), len(problem.x_R)
  size = max(8, _CHUNK // runs)
  parts = []
  for start in range(0, count, size):
    rows = slice(start, min(start + size, count))
    y = problem.y_R[None] if y_SR is None else y_SR[rows]
    w = np.ones((1, runs)) if w_SR is None else w_SR[rows]
    shape = (rows.stop - start, runs)
    parts.append(
      _minimise(
        problem,
        theta_SP[rows],
        np.broadcast_to(y, shape),
        np.broadcast_to(w, shape),
        steps,
        tolerance,
      )
    )
  return Solution(
    *(np.concatenate(field) for field in zip(*parts, strict=True))
  )


def _minimise(problem, theta_SP, y_SR, w_SR, steps, tolerance):
  low, high = problem.low_P, problem.high_P
  theta = np.clip(theta_SP, low, high)
  count = len(theta)
  best = np.full(count, np.inf)
  steepest = np.full(count, np.inf)
  used = np.zeros(count, int)
  goal = tolerance * problem.delta * w_SR.sum(1)
  damp = np.full(count, 1e-3)
  live = np.arange(count)
  trial = theta.copy()
  state = [np.zeros((count, 5)), np.zeros((count, 5, 5)), np.ones((count, 5))]
  for step in range(steps + 1):
    value, *derivatives = _newton(problem, trial, y_SR[live], w_SR[live])
    # At the rounding error of the objective, a smaller gradient is better.
    better = value < best[live] - 1e-14 * np.abs(value)
    free = _free(trial, derivatives[0], low, high)
    slope = np.abs(np.where(free, derivatives[0], 0)).max(1)
    near = np.abs(value - best[live]) <= 1e-12 * np.abs(value)
    better |= near & (slope < steepest[live])
    won = live[better]
    theta[won], best[won] = trial[better], value[better]
    steepest[won] = slope[better]
    for kept, new in zip(state, derivatives, strict=True):
      kept[won] = new[better]
    damp[live] = np.where(better, damp[live] * 0.2, damp[live] * 6)
    used[live] = step
    done = (steepest[live] <= goal[live]) | (damp[live] > 1e12)
    live = live[~done]
    if not len(live) or step == steps:
      break
    damp[live] = np.maximum(damp[live], 1e-12)
    trial = _step(theta[live], damp[live], [k[live] for k in state], low, high)
  return theta, best, steepest, used


def _free(theta, gradient, low, high):
  """A parameter at its bound, pushed outward, is held there."""
  return ~(
    ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
  )


def _step(theta, damp, state, low, high):
  gradient, hessian, scale = state
  free = _free(theta, gradient, low, high)
  gradient = np.where(free, gradient, 0)
  hessian = np.where(free[:, :, None] & free[:, None, :], hessian, 0)
  scale = scale + 1e-9 * scale.max(1, keepdims=True) + 1e-300
  root = 1 / np.sqrt(np.where(free, scale, 1))
  values, vectors = np.linalg.eigh(
    hessian * root[:, :, None] * root[:, None, :]
  )
  # Negative curvature is turned round, so that every step goes downhill.
  curvature = np.abs(values) + damp[:, None]
  step = np.einsum('sji,sj->si', vectors, gradient * root) / curvature
  step = np.einsum('sij,sj->si', vectors, step) * root
  # Two e-folds at most: farther, the quadratic model says nothing.
  size = np.abs(step).max(1, keepdims=True)
  return np.clip(theta - step * np.minimum(1, 2 / (size + 1e-300)), low, high)


def starts(problem: Problem, exponents: np.ndarray) -> np.ndarray:
  """Returns a start for each pair of exponents, on the profile of the pair.

  Given alpha and beta, L is linear in E, A and B: the relative squared error
  is minimised, thrice, with Huber's weights from the fit before.
  """
  alpha, beta = (g.ravel() for g in np.meshgrid(exponents, exponents))
  u_SR = np.exp(-alpha[:, None] * problem.x_R)
  v_SR = np.exp(-beta[:, None] * problem.z_R)
  design = np.stack([np.ones_like(u_SR), u_SR, v_SR], -1)
  design = design * np.exp(-problem.y_R)[:, None]
  weight_SR = np.ones_like(u_SR)
  for _ in range(3):
    gram = np.einsum('sri,sr,srj->sij', design, weight_SR, design)
    ridge = 1e-10 * np.einsum('sii->s', gram)[:, None, None] * np.eye(3)
    right = np.einsum('sri,sr->si', design, weight_SR)
    weights = np.linalg.solve(gram + ridge, right[..., None])[..., 0]
    miss_SR = np.abs(np.einsum('sri,si->sr', design, weights) - 1)
    weight_SR = problem.delta / np.maximum(miss_SR, problem.delta)
  floor = 1e-2 * np.exp(problem.y_R.min())
  logs = np.log(np.maximum(weights, floor))
  return np.column_stack([logs, alpha, beta])


def condition(problem: Problem, theta_P: np.ndarray) -> float:
  """Returns the condition number of the scaled Hessian of squared errors."""
  _, one_SR, two_SR = _terms(theta_P[None], problem.x_R, problem.z_R)
  one, two = one_SR[0], two_SR[0]
  jacobian = np.stack(
    [1 - one - two, one, two, -one * problem.x_R, -two * problem.z_R], 1
  )
  scale = np.linalg.norm(jacobian, axis=0)
  values = np.linalg.svd(jacobian / np.maximum(scale, 1e-300), compute_uv=False)
  return float((values[0] / max(values[-1], 1e-300)) ** 2)
