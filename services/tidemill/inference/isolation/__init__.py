"""Models in processes of their own: spawned, restarted when they crash, with tensors in shared memory."""
