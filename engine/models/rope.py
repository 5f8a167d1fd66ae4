"""Rotary positions: inverse frequencies, and the tables of cosines and sines.

Legend: P positions, D head_dim, F = D / 2 frequencies.
"""

from __future__ import annotations

import math

import torch

from rlserve.engine.models.base import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelSpec,
    RopeScaling,
    YarnScaling,
)
from rlserve.native.rotation import table_of_frequencies


def inverse_frequencies(spec: ModelSpec, num_positions: int) -> torch.Tensor:
    """[F] float32, radians per position: ``theta ** (-2 i / head_dim)`` (Su et al. 2021, arXiv 2104.09864), and
    then scaled, of the layers that see everything. The same bits as in transformers, which the trainer uses.

    ``num_positions`` is the length of the longest sequence. It alone decides between short and long factors
    (``longrope``): keys in the cache are rotated and stay so, while transformers changes all of a sequence at once when
    it outgrows the original length.
    """
    return _scale(_frequencies(spec.rope_theta, spec.head_dim), spec.rope_scaling, spec, num_positions)


def rotation_table(spec: ModelSpec, num_positions: int) -> torch.Tensor:
    """[P, 2, F] float32: cosines, then sines, of every position."""
    scaling = spec.rope_scaling
    factor = scaling.attention_factor if isinstance(scaling, YarnScaling | LongRopeScaling) else 1.0
    return table_of_frequencies(inverse_frequencies(spec, num_positions), num_positions, factor)


def local_rotation_table(spec: ModelSpec, num_positions: int) -> torch.Tensor | None:
    """[P, 2, F] the table of layers with a window, or None where they rotate like the others."""
    if spec.local_rope_theta is None:
        return None
    return table_of_frequencies(_frequencies(spec.local_rope_theta, spec.head_dim), num_positions)


def _frequencies(theta: float, head_dim: int) -> torch.Tensor:
    return 1.0 / _periods(theta, head_dim)


def _periods(theta: float, head_dim: int) -> torch.Tensor:
    exponents: torch.Tensor = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return theta**exponents


def _scale(
    frequencies_F: torch.Tensor, scaling: RopeScaling | None, spec: ModelSpec, num_positions: int
) -> torch.Tensor:
    if isinstance(scaling, LinearScaling):
        return frequencies_F / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _stretch_long_waves(frequencies_F, scaling)
    if isinstance(scaling, YarnScaling):
        return _stretch_slow_dimensions(frequencies_F, scaling, spec)
    if isinstance(scaling, LongRopeScaling):
        is_long = num_positions > scaling.original_max_position
        factors_F = torch.tensor(scaling.long_factors if is_long else scaling.short_factors, dtype=torch.float32)
        return 1.0 / (factors_F * _periods(spec.rope_theta, spec.head_dim))
    return frequencies_F


def _stretch_long_waves(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Llama 3.1: divide the frequency of long waves by ``factor``, keep short ones, blend those between."""
    wavelengths = 2 * math.pi / frequencies
    longest, shortest = (
        scaling.original_max_position / scaling.low_freq_factor,
        scaling.original_max_position / scaling.high_freq_factor,
    )
    blend = (scaling.original_max_position / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    stretched = torch.where(wavelengths > longest, frequencies / scaling.factor, frequencies)
    between = (wavelengths <= longest) & (wavelengths >= shortest)
    return torch.where(between, blended, stretched)


def _stretch_slow_dimensions(frequencies_F: torch.Tensor, scaling: YarnScaling, spec: ModelSpec) -> torch.Tensor:
    """YaRN, section 3.2: dimensions that turn more than ``beta_fast`` times over the original length are kept,
    those that turn less than ``beta_slow`` times are stretched, a ramp lies between."""

    def dimension(num_turns: float) -> float:
        ratio = scaling.original_max_position / (num_turns * 2 * math.pi)
        return spec.head_dim * math.log(ratio) / (2 * math.log(spec.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.head_dim - 1)
    high = high if high != low else high + 0.001  # no ramp of length 0
    ramp_F = ((torch.arange(len(frequencies_F), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept_F = 1 - ramp_F
    stretched_F = 1.0 / (scaling.factor * _periods(spec.rope_theta, spec.head_dim))
    return stretched_F * (1 - kept_F) + frequencies_F * kept_F
