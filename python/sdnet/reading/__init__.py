"""Reading a network: codes mapped back to pictures, dictionaries and what they do, as figures and a page."""

from .inversion import invert, invertible_layers

__all__ = ["invert", "invertible_layers"]
