"""Triton kernels; only these modules import Triton."""
