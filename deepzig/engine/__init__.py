"""Requests in, tokens out: loading, the generation loop, sampling. Called by users and all
packages above; calls `model` and `text`."""
