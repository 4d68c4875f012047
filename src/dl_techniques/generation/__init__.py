"""Decoding: from prompts to new tokens."""
