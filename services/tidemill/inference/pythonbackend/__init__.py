"""What `TritonPythonModel` classes need: their side in the model's process, and the server's side of it."""
