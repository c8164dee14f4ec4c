"""``spendstream demo``: every part of the service on one machine."""
