"""Spendstream's data path: stream in, exact rollups out.

Read one event's way in file order: ``transports`` (chunks from the broker), ``agents`` (Faust
wiring), ``core`` (pure decisions), ``sink`` (one transaction). ``service`` builds and stops it all.
"""
