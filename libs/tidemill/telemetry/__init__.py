"""Traces, metrics and logs of every process, tied together by trace ids."""
