"""Slow, obvious float64 references that the tests compare against."""
