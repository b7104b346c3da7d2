"""Encoder, head and the loop that trains them on a mix."""
