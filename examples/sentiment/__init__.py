"""Sentiment of real sentences, with torch.nn and with fastrnn: ``python -m examples.sentiment``."""
