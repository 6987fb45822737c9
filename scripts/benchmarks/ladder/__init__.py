"""The rungs of the transport ladder: ways to get gradients into another process and parameters back."""
