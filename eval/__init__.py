"""Measurements, nothing else: an encoder comes in as a callable."""
