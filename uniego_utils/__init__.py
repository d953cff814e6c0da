"""Shared helpers of the UNIEGO notebook suite: one concept a file, named by the paper's words."""

__version__ = "0.1.0"
