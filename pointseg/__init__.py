"""Lumbar vertebrae from point labels, step by step."""
