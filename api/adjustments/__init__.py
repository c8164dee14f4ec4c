"""Adjustments over HTTP: listing those of an org, recording one, and retracting one.

`routes` has the handlers, and `orders` reads the bodies. The rules are those of the command
(`pipeline.common.adjustments`).
"""
