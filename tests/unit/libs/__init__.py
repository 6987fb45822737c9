"""Tests of the smallest libraries."""
