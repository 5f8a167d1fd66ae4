"""Rotary positions: inverse frequencies, and the table of cosines and sines.

Legend: P positions, F = head_dim / 2 frequencies.
"""

from __future__ import annotations

import math

import torch

from rlserve.engine.models.base import ModelSpec, RopeScaling


def inverse_frequencies(spec: ModelSpec) -> torch.Tensor:
    """[F] float32, radians per position: ``theta ** (-2 i / head_dim)`` (Su et al. 2021, arXiv 2104.09864)."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    frequencies = 1.0 / (spec.rope_theta**exponents)
    return frequencies if spec.rope_scaling is None else _stretch(frequencies, spec.rope_scaling)


def _stretch(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
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


def rotation_table(spec: ModelSpec, num_positions: int) -> torch.Tensor:
    """[P, 2, F] float32: cosines, then sines, of every position."""
    angles_PF = torch.outer(torch.arange(num_positions, dtype=torch.float32), inverse_frequencies(spec))
    return torch.stack([angles_PF.cos(), angles_PF.sin()], dim=1)
