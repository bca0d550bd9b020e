"""Reading a network: its codes mapped back to pictures, its dictionaries and what they do, as figures and a page."""

from .inversion import invert, invertible_layers

__all__ = ["invert", "invertible_layers"]
