"""Codecs at work: made by name, chosen by measurement, and what lossy ones leave for later."""
