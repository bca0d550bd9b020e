"""Triton kernels, one file of device code per op, and what launches them."""
