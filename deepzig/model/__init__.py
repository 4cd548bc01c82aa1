"""The forward pass: token ids in, hidden states and logits out. Called by `engine`, `evaluate`
and `distributed`; calls `_kernels`."""
