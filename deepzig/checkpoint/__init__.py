"""Weights on disk: strict reading, formats, quantising, writing. Used by all packages above;
see each file."""
