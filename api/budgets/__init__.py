"""Budgets over HTTP, and what judges them.

`periods` and `rules` are pure: the bounds of periods, the thresholds, the forecast and the states. `spending`
reads what was spent. `orders` reads bodies, and `routes` has the handlers. The process of `api.alerts` judges
by the same rules and the same figures.
"""
