"""A revisioned key-value store: one narrow contract, an embedded implementation (SQLite) and a real one (etcd)."""
