"""The artifact service: blobs addressed by their SHA-256, the artifacts made of them, and resumable uploads."""
