"""The inference service: serves the versions that the registry's aliases point at, over the Open Inference Protocol."""
